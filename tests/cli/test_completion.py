"""Completion in the real shells: verbs, options, and the names of workers that are there."""

import os
import shutil
import subprocess

import pytest

from posthouse_testing.cluster import command

SHELLS = ("bash", "zsh", "fish")
SCRIPTS = {
    "bash": """
        eval "$(posthouse completion bash)"
        complete -p posthouse >&2
        COMP_WORDS=(@WORDS@)
        COMP_CWORD=@LAST@
        _posthouse_completion posthouse
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    # zsh's widgets want a terminal: what they would be given is shown in their place.
    "zsh": """
        compdef() { print -u2 "$@" }
        _describe() { print -l -- ${(P)3} }
        compadd() { print -l -- ${(P)@[-1]} }
        eval "$(posthouse completion zsh)"
        words=(@WORDS@)
        CURRENT=@COUNT@
        _posthouse_completion
    """,
    "fish": """
        posthouse completion fish | source
        complete -C @LINE@
    """,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A folder with a `posthouse` for the shells to call."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "posthouse"
    program.write_text(f'#!/bin/sh\nexec {" ".join(command())} "$@"\n')
    program.chmod(0o755)
    return folder


def words(shell, path, line, **variables):
    """What the shell offers after this line, by its own machinery."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    before = [each or '""' for each in line.split(" ")]
    script = SCRIPTS[shell].replace("@WORDS@", " ".join(before)).replace("@LINE@", repr(line))
    script = script.replace("@LAST@", str(len(before) - 1)).replace("@COUNT@", str(len(before)))
    env = {k: v for k, v in os.environ.items() if not k.startswith("POSTHOUSE_")}
    env |= {"PATH": f"{path}:{env['PATH']}", "HOME": str(path), **variables}
    quiet = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    ran = subprocess.run(
        [shell, *quiet, "-c", script],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran
    assert "Traceback" not in ran.stderr, ran
    return {each.split("\t")[0].split(":")[0] for each in ran.stdout.splitlines()}


@pytest.mark.parametrize("shell", SHELLS)
def test_verbs_are_completed(shell, path):
    found = words(shell, path, "posthouse re")
    assert {"register", "release", "restart", "reload"} <= found
    assert "ps" not in found


@pytest.mark.parametrize("shell", SHELLS)
def test_names_of_workers_are_completed(shell, path, cluster, idle):
    found = words(shell, path, f"posthouse status {idle[:3]}", POSTHOUSE_MASTER=cluster.clients)
    assert idle in found


def test_options_are_completed_and_a_wrong_verb_is_nothing(path):
    assert "--json" in words("bash", path, "posthouse ps --j")
    assert words("bash", path, "posthouse frobnicate x") <= {""}


def test_without_a_master_no_name_is_offered_and_nothing_is_said(path):
    found = words("bash", path, "posthouse status x", POSTHOUSE_MASTER=f"ipc://{path}/none.sock")
    assert found <= {""}


def test_an_unknown_shell_is_wrong_usage(bare):
    assert "tcsh" in bare("completion", "tcsh", status=2).stderr
    assert bare("completion", "bash").stdout.count("_posthouse_completion") > 1
