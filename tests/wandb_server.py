"""A server on this machine that answers W&B's clients, for the tests of what they send."""

import gzip
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np

from twmaml.storage.metrics_file import format_number, read_metrics


@dataclass
class ReceivedRun:
    """A run as it has arrived."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Variables of the mutations that make or change it."""
    lines: dict[str, list[str]] = field(default_factory=dict)
    """Of its streams, by name: history, summary."""
    files: dict[str, bytes] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    """Of each process that has ended."""

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration; what W&B keeps for itself is `_wandb`."""
        return {key: entry["value"] for key, entry in json.loads(self.settings["config"]).items()}

    @property
    def history(self) -> list[dict[str, Any]]:
        """Its rows, in the order in which they were logged."""
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def summary(self) -> dict[str, Any]:
        """Its final metrics."""
        return json.loads(self.lines["wandb-summary.json"][-1])


class WandbServer:
    """Runs while its context is open; with `variables` in the environment W&B's clients talk to it."""

    def __init__(self) -> None:
        self.refuses: str | None = None
        """The mutation that it forbids."""
        self.runs: dict[str, ReceivedRun] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                answer = json.dumps(server.answer(urlsplit(self.path).path, body)).encode()
                forbidden = server.refuses is not None and server.refuses.encode() in body
                self.send_response(403 if forbidden else 200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_PUT = do_POST  # noqa: N815

            def log_message(self, format, *args):
                del format, args

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        # Reports of W&B's own errors would go to another server.
        self.variables = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "a" * 40, "WANDB_ERROR_REPORTING": "false"}
        self._thread = threading.Thread(target=self._http.serve_forever)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, path: str, body: bytes) -> Any:
        """The answer to a request."""
        if path == "/graphql":
            asked = json.loads(body)
            return {"data": self.graphql(asked["query"], asked.get("variables") or {})}
        kind, *place = (unquote(part) for part in path.strip("/").split("/"))
        if kind == "uploads":
            self.runs[place[0]].files["/".join(place[1:])] = body
        elif place and place[-1] == "file_stream":
            self._stream(self.runs[place[-2]], json.loads(body))
        return {}

    def graphql(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The data that a query or mutation is answered with."""
        if "upsertBucket" in query:
            inserted = variables["name"] not in self.runs
            run = self.runs.setdefault(variables["name"], ReceivedRun())
            run.settings |= {key: value for key, value in variables.items() if value is not None}
            return {"upsertBucket": {"bucket": self._bucket(variables["name"]), "inserted": inserted}}
        if "createRunFiles" in query:
            name = variables["run"]
            urls = {file: f"{self.url}/uploads/{name}/{quote(file)}" for file in variables["files"]}
            files = [{"name": file, "uploadUrl": url} for file, url in urls.items()]
            return {"createRunFiles": {"runID": name, "uploadHeaders": [], "files": files}}
        if "bucket(" in query:  # of a run that may be there already
            known = variables["name"] in self.runs
            return {"model": {"bucket": self._bucket(variables["name"]) if known else None}}
        return {}

    def _bucket(self, name: str) -> dict[str, Any]:
        """A run in the words of W&B's GraphQL."""
        run = self.runs[name]
        history = run.lines.get("wandb-history.jsonl", [])
        return {
            "id": f"id of {name}",
            "name": name,
            "displayName": run.settings.get("displayName"),
            "config": run.settings.get("config", "{}"),
            "summaryMetrics": run.lines.get("wandb-summary.json", ["{}"])[-1],
            "historyLineCount": len(history),
            "historyTail": json.dumps(history[-1:]),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "tags": run.settings.get("tags", []),
            "project": {"id": "p", "name": run.settings["project"], "entity": {"id": "e", "name": "someone"}},
        }

    def _stream(self, run: ReceivedRun, sent: Mapping[str, Any]) -> None:
        """Lines of a run's streams, each of which stands where it was sent to, or its end."""
        for name, part in (sent.get("files") or {}).items():
            run.lines.setdefault(PurePosixPath(name).name, [])[part["offset"] :] = part["content"]
        if sent.get("complete"):
            run.exit_codes.append(sent["exitcode"])


def assert_arrived(run: ReceivedRun, folder: Path) -> None:
    """Every number of metrics.csv over `step`, the last of them as the summary, and the figures to the byte."""
    rows = {}
    for row in run.history:
        rows.setdefault(row["step"], {}).update(row)
    metrics = read_metrics(folder / "metrics.csv")
    assert list(rows) == list(metrics["step"])
    for i, row in enumerate(rows.values()):
        known = {name: values[i] for name, values in metrics.items() if not np.isnan(values[i])}
        own = {name for name in row if not name.startswith(("_", "figures/"))}
        assert own == known.keys()
        assert {name: float(format_number(row[name])) for name in own} == known
    places = {(row["_step"], row["step"], frozenset(row)) for row in run.history}
    assert len({own_step for own_step, *_ in places}) == len(places)  # none lies over another
    axes = run.config["_wandb"]["m"]  # W&B's definitions of metrics, in which 1 is the name, 2 a pattern, 5 the axis
    (of_all,) = (axis for axis in axes if axis.get("2") == "*")
    assert axes[of_all["5"] - 1]["1"] == "step"

    ended = json.loads((folder / "summary.json").read_text())
    assert {name: run.summary[name] for name in metrics if name in ended} == {
        name: ended[name] for name in metrics if name in ended
    }
    drawn = {f"figures/{path.stem}": path.read_bytes() for path in (folder / "figures").glob("*.png")}
    assert len(drawn) >= 5
    assert {name: run.files[run.summary[name]["path"]] for name in drawn} == drawn
