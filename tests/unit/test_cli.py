"""The command line: what it prints, where, and its exit status. In process where a process of its own adds nothing."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import grebe
import numpy as np
import pytest
from grebe.cli import main, make_parser
from grebe.measure import negative_log_likelihood
from grebe.progress import ProgressBar
from grebe.report import columns, file_report, size, tensor_report

COMMANDS = (
    "run", "inspect", "bench", "tokenize", "perplexity", "doctor", "quantize", "imatrix", "compare",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_model_in_the_environment(monkeypatch):
    monkeypatch.delenv("GREBE_MODEL", raising=False)


def grebe_command(*args: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "grebe", *args],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


# ------------------------------------------------------------------ run


def test_run_prints_prompt_and_text(capsys):
    assert main(["run", "--greedy", "-n", "12", "Once upon a time"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Once upon a time, there was a ")
    assert out.endswith("\n")
    assert err == ""


def test_run_without_echo(capsys):
    assert main(["run", "--greedy", "-n", "3", "--no-echo", "Once upon a time"]) == 0
    assert capsys.readouterr().out == ", there was\n"


def test_run_json_events(capsys):
    assert (
        main(["run", "--json", "--greedy", "-n", "4", "--top-logprobs", "2", "Once upon a time"])
        == 0
    )
    *events, total = map(json.loads, capsys.readouterr().out.splitlines())
    assert "".join(e["text"] for e in events) == total["text"] == ", there was a"
    assert [len(e["top_logprobs"]) for e in events] == [2] * 4
    assert events[-1]["finish_reason"] == total["finish_reason"] == "length"
    assert total["usage"] == {"prompt_tokens": 5, "cached_tokens": 0, "completion_tokens": 4}
    assert isinstance(total["seed"], int)
    assert total["model"]["kernels"] == "fast"


def test_run_seeds(capsys):
    texts = []
    for seed in ("1", "1", "2"):
        assert main(["run", "--seed", seed, "-n", "20", "Once"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_run_stop(capsys):
    assert main(["run", "--greedy", "--stop", "girl", "Once upon a time"]) == 0
    assert "girl" not in capsys.readouterr().out


def test_run_reads_stdin():
    done = grebe_command("run", "--greedy", "-n", "3", "--no-echo", input="Once upon a time")
    assert (done.returncode, done.stdout, done.stderr) == (0, ", there was\n", "")


def test_stdin_that_is_no_text():
    done = subprocess.run(
        [sys.executable, "-m", "grebe", "run"], input=b"\xff\xfe", capture_output=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"grebe: ")


def test_a_terminal_that_cannot_show_a_character():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = grebe_command("run", "-n", "1", "h\u00e9", env=environment)
    assert done.returncode == 0
    assert done.stdout.startswith("h?")


def test_a_reader_that_goes_away():
    pipe = subprocess.Popen(
        [sys.executable, "-m", "grebe", "run", "-n", "2000", "Once"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert pipe.stdout.read(4) == b"Once"
    pipe.stdout.close()
    assert pipe.stderr.read() == b""
    pipe.stderr.close()
    assert pipe.wait(60) == 1


def test_ctrl_c_exits_130():
    process = subprocess.Popen(
        [sys.executable, "-m", "grebe", "run", "-n", "100000", "--json", "Once"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["run", "--model", "no-such.gguf", "x"], 2, "no-such.gguf"),
        (["run", "--model", __file__, "x"], 2, "GGUF"),
        (["inspect", __file__], 2, "GGUF"),
        (["run", "--temperature", "-1", "x"], 2, "temperature"),
        (["run", "--stop", "", "x"], 2, "stop"),
        (["run", "--ctx", "1", "x"], 2, "context"),
        (["perplexity", "no-such.txt"], 2, "no-such.txt"),
        (["run", "--seed=-1", "x"], 2, "seed is -1"),
        (["run", "--seed", "9" * 30, "x"], 2, "seed is 9"),
        (["run", "--top-k", "9" * 30, "x"], 2, "top_k is 9"),
        (["run", "--greedy", "--temperature=-1", "x"], 2, "temperature is -1.0"),
        (["run", "--temperature=nan", "x"], 2, "temperature is nan"),
        (["run", "h\udcff"], 2, "prompt is 'h\\udcff', which is not UTF-8"),
        (["run", "--stop", "h\udcff", "x"], 2, "stop is"),
        (["tokenize", "h\udcff"], 2, "text is"),
        (["bench", "--depths", "5,3"], 2, "depths"),
        (["bench", "--depths", "0,9999999"], 2, "n_ctx"),
    ],
)
def test_errors_are_one_line(capsys, argv, status, words):
    assert main(argv) == status
    err = capsys.readouterr().err
    assert err.startswith("grebe: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["run", "--max-tokens", "0", "x"],
        ["run", "--kernels", "odd"],
        ["bench", "--depths", "a,b"],
    ],
)
def test_wrong_usage_exits_2(capsys, argv):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


def test_a_number_that_is_none(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", "-n", "abc", "x"])
    assert caught.value.code == 2
    assert "'abc' is not a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "closed", "status", "words"),
    [
        ("tokenize", "<&-", 2, "stdin is closed"),
        ("run", "<&-", 2, "stdin is closed"),
        ("tokenize x", ">&-", 1, "stdout is closed"),
        ("tokenize x", "2>&-", 0, ""),
        ("inspect no-such.gguf", "2>&-", 2, ""),
    ],
)
def test_closed_streams(argv, closed, status, words):
    command = f"exec {shlex.quote(sys.executable)} -m grebe {argv} {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert words in done.stderr
    assert done.stderr.count("\n") == bool(words)


def test_ctrl_c_while_options_are_read(monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("grebe.cli.make_parser", interrupt)
    assert main(["run", "x"]) == 130


def test_version_and_help(capsys):
    for argv in (["--version"], ["--help"], *([c, "--help"] for c in COMMANDS)):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 0
    assert f"grebe {grebe.__version__}" in capsys.readouterr().out
    assert grebe.__version__ == "0.1.0"


def test_the_environment_names_the_model(monkeypatch, capsys):
    monkeypatch.setenv("GREBE_MODEL", "from-the-environment.gguf")
    assert make_parser().parse_args(["run"]).model == "from-the-environment.gguf"
    assert main(["inspect"]) == 2
    assert "from-the-environment" in capsys.readouterr().err


# ------------------------------------------------------------------ inspect, tokenize


def test_inspect_table_and_json(capsys):
    assert main(["inspect", "--tensors"]) == 0
    table = capsys.readouterr().out
    for words in ("1 CSA", "Q8_0", "KV at 8192 tokens", "backends", "output.weight"):
        assert words in table
    assert main(["inspect", "--json", "--tensors", "--ctx", "1024"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["config"]["n_layers"] == 4
    assert info["memory"]["n_ctx"] == 1024
    assert len(info["tensors"]) == sum(t["tensors"] for t in info["dtypes"].values())
    assert main(["inspect", "--json"]) == 0
    assert "tensors" not in json.loads(capsys.readouterr().out)


def test_names_in_a_file_do_not_drive_the_terminal():
    info = grebe.inspect()
    bad = "a\x1b]0;title\x07\x9b2J\n\u202eb"
    hostile = replace(
        info,
        config=replace(info.config, name=bad),
        tensors=(replace(info.tensors[0], name=bad, dtype=bad),),
        problem=bad,
        notes=(bad,),
    )
    unknown = replace(hostile, config=None, metadata={f"general.{bad}": bad})
    for report in (file_report(hostile), file_report(unknown), tensor_report(hostile)):
        assert all(c.isprintable() or c == "\n" for c in report)
        assert r"a\x1b]0;title\x07\x9b2J\n\u202eb" in report


def test_tokenize(capsys):
    ids = grebe.Model.load().tokenizer.encode("Hello there")
    assert main(["tokenize", "--ids", "Hello there"]) == 0
    assert [int(x) for x in capsys.readouterr().out.split()] == ids
    assert main(["tokenize", "--json", "Hello there"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ids"] == ids
    assert "".join(found["pieces"]) == "Hello there"
    assert main(["tokenize", "Hello"]) == 0
    assert "'Hello'" in capsys.readouterr().out


def test_tokenize_special(capsys):
    assert main(["tokenize", "--ids", "<think>"]) == 0
    plain = capsys.readouterr().out.split()
    assert main(["tokenize", "--ids", "--allow-special", "<think>"]) == 0
    special = capsys.readouterr().out.split()
    assert len(special) == 1 < len(plain)


# ------------------------------------------------------------------ bench, perplexity


def test_bench_formats(capsys):
    options = ["bench", "--depths", "0,64", "--prefill", "16", "--decode", "2"]
    assert main(options) == 0
    assert "prefill tok/s" in capsys.readouterr().out
    assert main([*options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["depth"] for row in result["rows"]] == [0, 64]
    assert result["read_bandwidth"] > 1e8
    for row in result["rows"]:
        share = result["bytes_per_token"] * row["decode_tok_per_s"] / result["read_bandwidth"]
        assert row["bandwidth_share"] == pytest.approx(share, rel=1e-3)
    assert main([*options, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["depth"] for row in rows] == ["0", "64"]


def test_bench_plot(tmp_path, capsys):
    picture = tmp_path / "speed.png"
    assert (
        main(["bench", "--depths", "0", "--prefill", "8", "--decode", "1", "--plot", str(picture)])
        == 0
    )
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_perplexity_is_the_mean_of_teacher_forcing(tmp_path, capsys):
    text = (
        "Once upon a time there was a small bird. It could dive very deep, and it was not afraid."
    )
    path = tmp_path / "story.txt"
    path.write_text(text)
    model = grebe.Model.load()
    ids = model.tokenizer.encode(text)
    rows = model.session().evaluate([0, *ids[:-1]])
    expected = negative_log_likelihood(rows, ids) / len(ids)
    assert main(["perplexity", str(path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["nats_per_token"] == pytest.approx(expected, rel=1e-9)
    assert result["perplexity"] == pytest.approx(math.exp(expected))
    assert result["n_tokens"] == len(ids)
    assert result["bits_per_byte"] == pytest.approx(
        expected * len(ids) / math.log(2) / len(text.encode())
    )


def test_perplexity_windows_count_every_token_once(tmp_path, capsys):
    text = "Once upon a time there was a small bird. " * 8
    path = tmp_path / "story.txt"
    path.write_text(text)
    model = grebe.Model.load()
    ids = model.tokenizer.encode(text)
    assert main(["perplexity", str(path), "--json", "--ctx", "17", "--stride", "8"]) == 0
    result = json.loads(capsys.readouterr().out)
    total, counted = 0.0, 0
    for start in range(0, len(ids), 8):
        window = ids[start : start + 16]
        rows = model.session().evaluate([0, *window[:-1]])
        first = counted - start
        total += negative_log_likelihood(rows[first:], window[first:])
        counted = start + len(window)
        if counted == len(ids):
            break
    assert result["n_tokens"] == counted == len(ids)
    assert result["nats_per_token"] == pytest.approx(total / counted, rel=1e-9)


def test_perplexity_of_a_file_is_that_of_stdin(tmp_path):
    text = b"Once upon a time\r\nthere was\ra bird.\r\n"
    path = tmp_path / "dos.txt"
    path.write_bytes(text)
    results = [
        subprocess.run(
            [sys.executable, "-m", "grebe", "perplexity", "--json", name],
            input=text,
            capture_output=True,
            check=True,
        ).stdout
        for name in (str(path), "-")
    ]
    one, two = ({**json.loads(r), "tok_per_s": 0} for r in results)
    assert one == two
    assert one["n_bytes"] == len(text)


@pytest.mark.parametrize("options", [["--ctx", "1"], ["--ctx", "8", "--stride", "8"]])
def test_perplexity_ranges(tmp_path, capsys, options):
    path = tmp_path / "a.txt"
    path.write_text("words")
    assert main(["perplexity", str(path), *options]) == 2


def test_perplexity_of_nothing(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_text("")
    assert main(["perplexity", str(path)]) == 2
    assert "empty" in capsys.readouterr().err


def test_negative_log_likelihood_is_stable():
    logits = np.array([[1e4, 0.0], [0.0, 0.0]], np.float32)
    assert negative_log_likelihood(logits, [0, 1]) == pytest.approx(math.log(2))
    assert negative_log_likelihood(logits, [1, 1]) == pytest.approx(1e4 + math.log(2))
    assert negative_log_likelihood(logits[:0], []) == 0.0


# ------------------------------------------------------------------ bits and pieces


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_silent_off_a_terminal_and_before_a_second():
    pipe, terminal = io.StringIO(), Terminal()
    for stream in (pipe, terminal):
        with ProgressBar("work", stream=stream) as bar:
            bar(1, 2)
        assert stream.getvalue() == ""


def test_progress_on_a_terminal():
    terminal = Terminal()
    with ProgressBar("work", stream=terminal, delay=0.0) as bar:
        time.sleep(0.01)
        bar(50, 100)
        assert "work [############............] 50/100" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")


def test_size_and_columns():
    assert [size(x) for x in (0, 999, 1000, 12_345, 5_861_344, 86.7e9)] == [
        "0 B", "999 B", "1.00 kB", "12.3 kB", "5.86 MB", "86.7 GB",
    ]  # fmt: skip
    assert columns([("a", 1), ("bb", 22)], right="lr") == "  a    1\n  bb  22"
    assert columns([]) == ""
