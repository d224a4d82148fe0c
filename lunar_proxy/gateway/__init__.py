"""Where decisions meet stores.

`runtime` compiles a config; `admission` tells who calls and reserves room, `tokens` makes what
checks a JWT; `gateway` is the life of a request, `ticket` what goes with it, `books` what is
written down of it; `shortcut` carries a plain call as long as all is well, and hands it to
`relay.carry` when it is not; `views` are the documents about models, providers and prices.

`planner` says where a call may go. Where that leaves the model to us, `decider` loads the router
and decides, `choices` finds what it may choose among, `router` makes a plan of its decision,
`answers` says it to the client, `learning` takes what is said of the answer. `explain` shows a plan
without carrying it out.
"""

from .admission import Caller, Callers
from .books import Closed
from .decider import Decider, Loaded
from .explain import explain
from .gateway import Gateway, Ports
from .runtime import Runtime, compile_config, wants_router
from .tokens import token_verifier

__all__ = [
    "Caller",
    "Callers",
    "Closed",
    "Decider",
    "Gateway",
    "Loaded",
    "Ports",
    "Runtime",
    "compile_config",
    "explain",
    "token_verifier",
    "wants_router",
]
