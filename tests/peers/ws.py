"""A WebSocket echo server (the websockets library) that accepts one bearer token.

Argument: JSON, {"token": the accepted bearer token, "tls": DIR of certs.py for TLS, absent for cleartext}. Prints
{"listening": {"ws": port}}. The first message of each connection holds the handshake as received; after a message "close" the
server closes with code 4001. Exits when its stdin closes.
"""

import asyncio
import http
import json
import ssl
import sys

from websockets.asyncio.server import serve


async def main(options):
    def authenticate(connection, request):
        if request.headers.get_all("Authorization") != ["Bearer " + options["token"]]:
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "no such token\n")
        return None

    async def echo(socket):
        request = socket.request
        handshake = {"path": request.path, "headers": [[name.lower(), value] for name, value in request.headers.raw_items()]}
        await socket.send(json.dumps(handshake))
        async for message in socket:
            if message == "close":
                await socket.close(4001, "as requested")
                return
            await socket.send(message)

    tls = None
    if options.get("tls"):
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(f"{options['tls']}/server.pem", f"{options['tls']}/server.key")
    async with serve(echo, "127.0.0.1", 0, process_request=authenticate, max_size=None, ping_interval=None, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        print(json.dumps({"listening": {"ws": port}}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main(json.loads(sys.argv[1])))
