"""Commands that look at artifacts: ls, get, verify."""

import json
import sys
from pathlib import Path

import click

from modelmill.cli.options import output_option, store_options


@click.group()
def artifacts() -> None:
    """List, fetch and verify what stages have committed."""


@artifacts.command("ls")
@store_options
@output_option
def list_(home: Path, store_url: str | None, output: str) -> None:
    """List every committed artifact."""
    from modelmill.cli.show import bytes_text, print_table
    from modelmill.conduct.place import opened
    from modelmill.conduct.standing import artifact_rows

    with opened(home, store_url) as place:
        rows = sorted(artifact_rows(place.store), key=lambda row: row.created)
    if output == "json":
        click.echo(json.dumps([row.model_dump() for row in rows], indent=2))
        return
    print_table(
        ("key", "stage", "run", "created", "files", "size"),
        [
            (
                row.key[:12],
                row.stage,
                row.run,
                row.created[:19],
                str(row.files),
                bytes_text(row.size_bytes),
            )
            for row in rows
        ],
        numbers_from=4,
    )


@artifacts.command()
@click.argument("key")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@store_options
def get(key: str, folder: Path, home: Path, store_url: str | None) -> None:
    """Download the artifact whose key begins with KEY into FOLDER, checking every byte."""
    from modelmill.conduct.place import opened
    from modelmill.conduct.standing import find_artifact
    from modelmill.store.artifact import pull

    with opened(home, store_url) as place:
        files = pull(place.store, find_artifact(place.store, key), folder)
    for file in files:
        click.echo(str(folder / file.path))


@artifacts.command()
@click.argument("key")
@store_options
@output_option
def verify(key: str, home: Path, store_url: str | None, output: str) -> None:
    """Read every byte of the artifact whose key begins with KEY again, and check its lineage."""
    from modelmill.conduct.place import opened
    from modelmill.conduct.standing import find_artifact, verify_artifact
    from modelmill.spec.errors import DigestMismatch

    with opened(home, store_url) as place:
        committed = find_artifact(place.store, key)
        problems = verify_artifact(place.store, committed)
    if output == "json":
        click.echo(json.dumps({"key": committed.manifest.key, "problems": problems}, indent=2))
    for problem in problems if output == "table" else ():
        click.echo(problem)
    if problems:
        sys.exit(DigestMismatch.exit_code)
    click.echo(
        f"{committed.manifest.stage}: {len(committed.manifest.files)} files are good", err=True
    )
