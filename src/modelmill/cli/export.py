"""Let a model leave: export."""

from pathlib import Path

import click

from modelmill.cli.completing import complete_model, complete_run
from modelmill.cli.options import store_options
from modelmill.spec.names import GGUFS, Gguf


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.argument("model", shell_complete=complete_model)
@click.argument("destination", metavar="DEST")
@click.option(
    "--force",
    "is_forced",
    is_flag=True,
    help="Also a model that failed the gate or is not judged; also over what DEST holds.",
)
@click.option(
    "--public",
    "is_public",
    is_flag=True,
    help="Let everybody see the repository on a hub; else it is private.",
)
@click.option(
    "--gguf",
    type=click.Choice(GGUFS),
    help="As one GGUF file with weights of this type, for llama.cpp and its like.",
)
@store_options
def export(
    run: str,
    model: str,
    destination: str,
    is_forced: bool,
    is_public: bool,
    gguf: Gguf | None,
    home: Path,
    store_url: str | None,
) -> None:
    """Bring MODEL of RUN out of the store: weights, tokenizer, card and checksums.

    DEST is a folder, s3://bucket/prefix, or hf:org/name; its last part is what the card calls
    the model.  A GGUF file is made of a model of 16 bits.  Interrupted, the same command goes on
    where it was.
    """
    from modelmill.cli.show import bytes_text
    from modelmill.conduct.exporting import Asked
    from modelmill.conduct.exporting import export as bring
    from modelmill.conduct.place import opened

    asked = Asked(run, model, destination, is_forced, is_public, gguf)
    with opened(home, store_url) as place:
        exported = bring(place.store, asked, home / "exports")
    click.echo(f"{exported.files} files, {bytes_text(exported.size_bytes)}", err=True)
    click.echo(exported.at)
