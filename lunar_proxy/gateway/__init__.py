"""Where decisions meet stores.

`runtime` compiles a config; `admission` tells who calls and reserves room, `tokens` makes what
checks a JWT; `gateway` is the life of a request; `views` are the documents about models, providers
and prices.
"""

from .admission import Callers
from .gateway import Gateway, Ports
from .runtime import Runtime, compile_config
from .tokens import token_verifier

__all__ = ["Callers", "Gateway", "Ports", "Runtime", "compile_config", "token_verifier"]
