"""What the gateway is measured against in Python: FastAPI with python-multipart, served by uvicorn.

Each address takes the gateway's form and keeps the file in the working directory:

  /plain     the documented way: an UploadFile, copied to its place; neither hashed nor synced
  /tuned     the same with the gateway's duties: read 64 KiB at a time, SHA-256, fsync, rename, fsync of the directory
  /streamed  the parser fed by hand, so that the bytes are written once; the same duties

Endpoints that write are plain functions where they can be: those run in threads and do not hold the event loop up.
"""

import hashlib
import os
import shutil
from pathlib import Path

from fastapi import FastAPI, Form, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from python_multipart.multipart import MultipartParser, parse_options_header

BLOCK_BYTES = 64 << 10
app = FastAPI()


@app.post("/plain/{session}")
def plain(session: str, recording: UploadFile, recording_type: str = Form()):
    with open(f"{session}.webm", "wb") as kept:
        shutil.copyfileobj(recording.file, kept)
    return {"recording_type": recording_type}


@app.post("/tuned/{session}")
def tuned(session: str, recording: UploadFile, recording_type: str = Form()):
    kept = Kept(session)
    while block := recording.file.read(BLOCK_BYTES):
        kept.write(block)
    return {"recording_type": recording_type, "sha256": kept.finish()}


@app.post("/streamed/{session}")
async def streamed(session: str, request: Request):
    kept = await run_in_threadpool(Kept, session)
    pieces, parts = [], []
    options = parse_options_header(request.headers["content-type"])[1]
    parser = MultipartParser(
        options[b"boundary"],
        {
            "on_part_begin": lambda: parts.append(None),
            # The file is the form's first part.
            "on_part_data": lambda data, start, end: pieces.append(data[start:end]) if len(parts) == 1 else None,
        },
    )
    async for frame in request.stream():
        parser.write(frame)
        if sum(map(len, pieces)) >= BLOCK_BYTES:
            await run_in_threadpool(kept.write, b"".join(pieces))
            pieces.clear()
    parser.finalize()
    await run_in_threadpool(kept.write, b"".join(pieces))
    return {"sha256": await run_in_threadpool(kept.finish)}


class Kept:
    """A file that has its name only when it is whole and on the disk."""

    def __init__(self, session: str):
        self.path = Path(f"{session}.webm")
        self.staged = Path(f"{session}.staged")
        self.file = open(self.staged, "wb", buffering=0)
        self.digest = hashlib.sha256()

    def write(self, block: bytes):
        self.digest.update(block)
        self.file.write(block)

    def finish(self) -> str:
        os.fsync(self.file.fileno())
        self.file.close()
        self.staged.rename(self.path)
        directory = os.open(".", os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return self.digest.hexdigest()
