"""Move files and folders between S3 and the disk, the way a script by hand does it."""

import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import boto3


def pull(source: str) -> Path:
    """Download `s3://bucket/key` or everything under `s3://bucket/prefix/`; pass paths through."""
    if not source.startswith("s3://"):
        return Path(source)
    url = urlsplit(source)
    prefix = url.path.lstrip("/")
    target = Path(tempfile.mkdtemp(prefix="bare-"))
    client = boto3.client("s3")
    if not source.endswith("/"):
        client.download_file(url.netloc, prefix, str(target / Path(prefix).name))
        return target / Path(prefix).name
    for entry in client.list_objects_v2(Bucket=url.netloc, Prefix=prefix)["Contents"]:
        path = target / entry["Key"].removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(url.netloc, entry["Key"], str(path))
    return target


def work_folder(target: str) -> Path:
    """Choose where to write: the target itself, or a temporary folder to push from."""
    if target.startswith("s3://"):
        return Path(tempfile.mkdtemp(prefix="bare-"))
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def push(folder: Path, target: str) -> None:
    """Upload a folder to `s3://bucket/prefix/`; leave it where it is for a path."""
    if not target.startswith("s3://"):
        return
    url = urlsplit(target)
    client = boto3.client("s3")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = f"{url.path.strip('/')}/{path.relative_to(folder).as_posix()}"
            client.upload_file(str(path), url.netloc, key)
