"""One address in front of several gateways, as a load balancer gives: a connection goes to any that takes it."""

import asyncio
import contextlib
import random
from typing import Self

CHUNK = 65536


class Balancer:
    """An async context manager; it forwards bytes and knows nothing of what they say."""

    def __init__(self, port: int, gateways: list[int], dice: random.Random) -> None:
        self._port = port
        self._gateways = gateways
        self._dice = dice
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        streams = [writer]
        try:
            far_reader, far_writer = await self._connect()
            streams.append(far_writer)
            pumps = [asyncio.ensure_future(_pump(reader, far_writer)), asyncio.ensure_future(_pump(far_reader, writer))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.wait(pumps)
        except (OSError, asyncio.CancelledError):
            return
        finally:
            for stream in streams:
                stream.close()
                with contextlib.suppress(OSError):
                    await stream.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To a gateway at random, or to the next one when it refuses."""
        error: OSError = ConnectionRefusedError()
        for port in self._dice.sample(self._gateways, len(self._gateways)):
            try:
                return await asyncio.open_connection("127.0.0.1", port)
            except OSError as refused:
                error = refused
        raise error


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
