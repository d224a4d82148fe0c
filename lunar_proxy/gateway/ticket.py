"""What goes with a call from its admission to its settlement."""

from __future__ import annotations

from dataclasses import dataclass

from lunar_proxy.core.intake import Incoming
from lunar_proxy.core.model import Call, Target, noun
from lunar_proxy.relay.carry import Carrier
from lunar_proxy.relay.client import Client
from lunar_proxy.relay.engine import Engine, Upload
from lunar_proxy.relay.passage import Passage

from .admission import Taken
from .router import Routed
from .runtime import Runtime


@noun
class Way:
    """Where an admitted call is to go, under the config that it began with."""

    runtime: Runtime
    engine: Engine
    call: Call
    plan: list[Target]
    client: Client
    upload: Upload | None


@dataclass(slots=True)
class Ticket:
    """What has to be given back when a call is over."""

    incoming: Incoming
    id: str
    call: Call | None = None  # once it is read
    way: Way | None = None  # once it is admitted; None: we answer it ourselves, or let it pass
    carrier: Carrier | Passage | None = None  # who is at work on it
    taken: Taken | None = None
    routed: Routed | None = None
