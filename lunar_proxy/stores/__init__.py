"""Keys, limits and the ledger, behind three small protocols.

`base`      the protocols `KeyStore`, `LimitStore` and `Ledger`, and their nouns: a `KeyRecord`, a
            `Reservation`, an `Entry`; `Store` is all three with one life
`memory`    one process, and the parts the others are made of
`sqlite`    one machine: several processes share a file; `redis`: as many replicas as you like
`keys`      what is done with keys: `Keyring.identify`, `create`, `revoke`, `rotate`
`jwt`       tokens instead of keys: `JwtVerifier.verify`

A request meets a store three times: `find` (or a JWT) tells who it is, `take` decides its limits
before anything is sent, and `settle` and `add` write down what it used when it is over. Only
`take` may have to wait. `open_store` makes a store of what the config says.
"""

from .base import (
    Entry,
    KeyRecord,
    KeyStore,
    Ledger,
    LimitStore,
    Reservation,
    Spend,
    Store,
    entries,
)
from .opening import open_store

__all__ = [
    "Entry",
    "KeyRecord",
    "KeyStore",
    "Ledger",
    "LimitStore",
    "Reservation",
    "Spend",
    "Store",
    "entries",
    "open_store",
]
