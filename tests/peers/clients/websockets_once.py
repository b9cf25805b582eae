"""One conversation with the Python websockets library: URL as the only argument, a proxy from the environment.

Prints JSON: the server's first message, whether text and a binary megabyte were echoed, the close code.
"""

import asyncio
import json
import os
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def main(url):
    async with connect(url, max_size=None) as socket:
        first = json.loads(await socket.recv())
        noise = os.urandom(1 << 20)
        echoed = True
        for message in ["one", "café", noise]:
            await socket.send(message)
            echoed = echoed and await socket.recv() == message
        await socket.send("close")
        try:
            await socket.recv()
        except ConnectionClosed as closed:
            print(json.dumps({"first": first, "echoed": echoed, "code": closed.rcvd.code}))


asyncio.run(main(sys.argv[1]))
