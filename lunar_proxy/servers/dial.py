"""Opening a connection for a tunnel: resolve once, judge every address, dial exactly that one.

A name server's second answer is never asked for, so it cannot lead elsewhere than the first, which
was checked (DNS rebinding). With a parent proxy the parent resolves, and answers for what it finds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lunar_proxy.core.connect import (
    Authority,
    Listener,
    Parent,
    is_private,
    is_self,
    private_address,
    through_parent,
)
from lunar_proxy.core.errors import ConnectTimeout, Forbidden
from lunar_proxy.relay.landing import (
    Connected,
    Resolve,
    addresses_of,
    connect,
    open_through,
    resolve,
)


def no_listeners() -> Sequence[Listener]:
    return ()


@dataclass(frozen=True, slots=True)
class Dialer:
    """`exposed`: private addresses are out of reach. `listeners` gives the addresses the proxy
    itself listens on, which are never dialled.
    """

    exposed: bool = False
    parent: Parent | None = None
    listeners: Callable[[], Sequence[Listener]] = no_listeners
    resolve: Resolve = resolve
    connect_s: float = 5.0

    async def open(self, target: Authority) -> Connected:
        """A connection to `target`, paused, with the Landing that holds what it said already.

        Raises Forbidden for an address out of reach, ConnectFailed and ConnectTimeout otherwise.
        """
        try:
            async with asyncio.timeout(self.connect_s):
                if self.parent is not None and through_parent(target.host):
                    return await open_through(self.parent, target, self.resolve)
                return await self._direct(target)
        except TimeoutError as error:
            raise ConnectTimeout(f"no connection to {target} in time") from error

    async def _direct(self, target: Authority) -> Connected:
        addresses = await addresses_of(self.resolve, target)
        if self.exposed:
            addresses = [address for address in addresses if not is_private(address)]
            if not addresses:
                raise private_address(target)
        transport, landing = await connect(addresses, target)
        peer, near = (transport.get_extra_info(end) for end in ("peername", "sockname"))
        if is_self(peer[0], near[0], peer[1], self.listeners()):
            transport.abort()
            raise Forbidden(f"{target} is this proxy itself", code="proxy_loop")
        return transport, landing
