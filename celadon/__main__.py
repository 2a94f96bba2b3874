"""The `celadon` command. Each command imports what it needs when it runs, so that `celadon --help` is quick."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from celadon import eyes, keys, models
from celadon import generate_options as asked
from celadon.watermark import watermark as read_mark

if TYPE_CHECKING:
    from celadon.client import Client

CANNOT_ASK = 3  # exit status of `doctor --worker` when Redis cannot be asked: nothing that a restart of the worker mends
HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="celadon",
    help="Text-to-image as a service. `celadon up` starts everything; `celadon generate` draws a picture.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)
jobs = typer.Typer(help="Look at jobs and dead letters; queue dead letters again.", no_args_is_help=True, context_settings=HELP)
app.add_typer(jobs, name="jobs")
app.add_typer(keys.app, name="keys", context_settings=HELP)
app.add_typer(models.app, name="models", context_settings=HELP)
app.add_typer(eyes.plot, name="plot", context_settings=HELP)

Host = Annotated[str | None, typer.Option(help="Address to listen on. [CELADON_HOST, else 127.0.0.1]", show_default=False)]
Port = Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [CELADON_PORT, else 7860]", show_default=False)]
JobId = Annotated[str, typer.Argument(help="The job's id.", show_default=False)]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")]
Status = Annotated[str | None, typer.Option(help="Only these: queued, running, succeeded, failed, canceled or dead.", show_default=False)]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of queue, pictures and logs. [CELADON_DATA_DIR, else .celadon]", show_default=False)
]


def main() -> None:
    app(prog_name="celadon")


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Say the version and end.", is_eager=True)] = False) -> None:
    if version:
        from importlib import metadata

        typer.echo(f"celadon {metadata.version('celadon')}")
        raise typer.Exit


@app.command()
def up(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    workers: Annotated[int, typer.Option(min=0, envvar="CELADON_WORKERS", help="How many worker processes.")] = 1,
    first_prompt: Annotated[str, typer.Option(help="Draw this as soon as the service is ready, and keep serving.")] = "",
    logs: Annotated[bool, typer.Option("--logs", help="Show the processes' logs here; they always go to <data dir>/logs.")] = False,
) -> None:
    """Start the whole service: Valkey, the gateway and the workers. Ctrl-C stops all of it.

    CELADON_REDIS_URL makes it use an existing Redis or Valkey instead of starting one.
    """
    from celadon import up as command
    from celadon.supervisor import StartRefused

    try:
        command.run(workers=workers, first_prompt=first_prompt, show_logs=logs, console=Console(), host=host, port=port, data_dir=data_dir)
    except StartRefused as error:
        raise fail(str(error), 2) from error


@app.command()
def gateway(
    host: Host = None,
    port: Port = None,
    fd: Annotated[int | None, typer.Option(hidden=True, help="A listening socket that was opened by the parent.")] = None,
) -> None:
    """Run one HTTP gateway. CELADON_REDIS_URL and CELADON_DATA_DIR say where jobs and pictures are."""
    from celadon import gateway as command
    from celadon.supervisor import StartRefused

    try:
        command.run(fd=fd, host=host, port=port)
    except StartRefused as error:
        raise fail(str(error), 2) from error


@app.command()
def worker() -> None:
    """Run one worker. CELADON_REDIS_URL, CELADON_MODEL, CELADON_DEVICE and others say what it does."""
    from celadon.settings import of_worker
    from celadon.supervisor import StartRefused
    from workers.__main__ import main as run

    try:
        of_worker()
    except StartRefused as error:
        raise fail(str(error), 2) from error
    run()


@app.command()
@asked.with_options
def generate(*, prompt: str, output: str, **said: Any) -> None:
    """Draw a picture and save it.

    Asks the service at CELADON_URL if that is set, else one that runs on this machine, else starts one for this picture.
    What is left out takes the model's own default.
    """
    from celadon import generate as command
    from celadon.client import CeladonError
    from celadon.generate_fields import fields
    from celadon.pairs import refusing
    from celadon.supervisor import StartRefused

    with refusing():
        params = fields(said)
    try:
        command.run(prompt, output, params, os.environ.get("CELADON_URL", ""), Console(stderr=True))
    except (CeladonError, StartRefused, OSError) as error:
        raise fail(str(error), 1) from error
    except KeyboardInterrupt:
        raise fail("canceled", 130) from None


@app.command()
def batch(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="JSON lines, or .txt with a prompt a line.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pictures.", show_default=False)],
    set_: Annotated[
        list[str],
        typer.Option("--set", help="Of every line that does not say otherwise, such as steps=20; may be repeated.", show_default=False),
    ] = [],  # noqa: B006
    cancel: Annotated[bool, typer.Option("--cancel", help="Take what is left of it out of the queue instead.")] = False,
) -> None:
    """Draw a file of prompts and save the pictures, named by line. Run again, it goes on where it stopped.

    Asks the service at CELADON_URL if that is set, else one that runs on this machine. docs/batches.md says what a line may be.
    """
    from celadon import batch as command
    from celadon.pairs import options_of, refusing

    with refusing():
        options = options_of(set_)
    try:
        with asking() as (_, client):
            if cancel:
                counts = command.cancel(client, output)["counts"]
                whole = True
                Console(stderr=True).print(f"{counts['canceled']} canceled, {counts['running']} running to their next step")
            else:
                whole = command.run(client, file, output, options, Console(stderr=True))
    except (OSError, ValueError) as error:
        raise fail(str(error), 1) from error
    except KeyboardInterrupt:
        raise fail("stopped; its jobs go on. Run it again to fetch their pictures, or with --cancel to end them", 130) from None
    if not whole:
        raise typer.Exit(1)


app.command()(eyes.explain)
app.command()(read_mark)


@app.command()
def doctor(
    worker: Annotated[bool, typer.Option("--worker", help="Only: is a worker of this host ready? For health checks.")] = False,
) -> None:
    """Check that everything `celadon up` needs is there; say what is wrong and what to do."""
    from celadon import doctor as command
    from celadon.supervisor import StartRefused

    try:
        raise typer.Exit(command.worker_alive() if worker else command.run(Console()))
    except StartRefused as error:
        raise fail(str(error), CANNOT_ASK if worker else 1) from error


@jobs.command("list")
def jobs_list(status: Status = None, limit: Limit = 20) -> None:
    """The newest jobs, with what they wait for.

    Asks the service at CELADON_URL if that is set, else one that runs on this machine.
    """
    with asking() as (command, client):
        command.show_list(client, Console(), status=status, limit=limit)


@jobs.command("dead")
def jobs_dead(limit: Annotated[int, typer.Option(min=1, max=100, help="How many at most.")] = 20) -> None:
    """The dead letters: jobs that were given up after their workers were lost, and when and where that was."""
    with asking() as (command, client):
        command.show_dead(client, Console(), limit=limit)


@jobs.command("show")
def jobs_show(job_id: JobId) -> None:
    """Everything about one job."""
    with asking() as (command, client):
        command.show(client, Console(), job_id)


@jobs.command("retry")
def jobs_retry(job_ids: Annotated[list[str], typer.Argument(help="Ids of dead letters.", show_default=False)]) -> None:
    """Queue dead letters again, each as a new job."""
    with asking() as (command, client):
        command.retry(client, Console(), job_ids)


@contextmanager
def asking() -> Iterator[tuple[ModuleType, Client]]:
    """The commands that ask a service, and a client of it; what goes wrong is said in one line."""
    from celadon import jobs as command
    from celadon.client import CeladonError
    from celadon.supervisor import StartRefused

    try:
        with command.client_of(os.environ.get("CELADON_URL", "")) as client:
            yield command, client
    except (CeladonError, StartRefused) as error:
        raise fail(str(error), 1) from error


def fail(message: str, status: int) -> typer.Exit:
    """Say what is wrong, on standard error."""
    Console(stderr=True).print(f"[red]✗[/] {escape(message)}", highlight=False, soft_wrap=True)
    return typer.Exit(status)


if __name__ == "__main__":
    main()
