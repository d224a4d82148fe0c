"""What speaks to clients. A connection begins at the fast door and may be handed on, once:

    door       the strict common case of a call, read in one match
    http       everything else by aiohttp, on the same transport; `api` are its local endpoints
    forward    CONNECT: `tunnel` passes bytes blind, `intercept` opens TLS with a leaf of `certs`
               and gives what is inside to a door again; `hosts` says which hosts, `dial` connects
    admin      the operators' listener: metrics, health, config; `admin_keys` keys and usage
    bounds     what a client may take of us, in bytes and seconds

Doors feed `gateway.Gateway.serve`; `app` makes them and hands them what they share.
"""
