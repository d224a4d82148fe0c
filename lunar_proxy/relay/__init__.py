"""The engine: one data plane for every door.

    carry     the attempt loop of one call: what `core.exchange` says, done; the commit
    trial     one target asked once; several run for a call, one after another or side by side
    reply     its answer: held until it may be shown, then from socket to socket by callback
    upstream  connections to providers, their pool, TLS; `landing` opens one by hand, where each
              address is judged or a parent proxy asked; `inprocess` is the demo, without a socket
    passage   a request that only passes through (an intercepted host's other paths)
    client    the side that asked, as the doors provide it
    meter     what an answer used, cost and took, fixed once and told the same to everyone
    health    breakers and measurements per target
    watch     one tick for all time limits
    engine    the nouns these share; `fetch` reads a small document, such as a JWKS

A call goes `Carrier.run -> Trial.run -> Connection.ask`, the answer comes back
`Connection -> Reply -> Client`, and only the end of it wakes the carrier again. A plain call that
finds an open connection may have been asked before (`gateway.shortcut`): its carrier then begins
with the answer to that.
"""
