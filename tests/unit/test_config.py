"""Settings: flags over environment over file, checked whole at start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchyard import limits
from batchyard.errors import ConfigError
from batchyard.fairness import Share
from batchyard.server.config import Config, load

SIM = ("sim=simulated:",)
FILE = """
[server]
host = "127.0.0.3"
port = 1003
data = "from-file"
public_url = "https://file.example/x/"
allowed_hosts = ["Internal.example"]

[[upstream]]
name = "claude"
url = "https://api.anthropic.com"
models = ["claude-*"]
slots = 5
timeout = 60

[[upstream]]
name = "local"
url = "http://localhost:8000/base"
key_env = "LOCAL_KEY"
"""


def config(
    tmp_path: Path | None = None,
    text: str | None = None,
    env: dict[str, str] | None = None,
    **flags: Any,
) -> Config:
    file = None
    if text is not None:
        assert tmp_path is not None
        file = tmp_path / "batchyard.toml"
        file.write_text(text)
    return load(file=file, environment=env or {}, **flags)


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config(*args, **kwargs)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_defaults_listen_on_loopback_only() -> None:
    made = config(upstreams=SIM)
    assert (made.host, made.port, made.data) == ("127.0.0.1", 8787, Path("batchyard-data"))
    assert (made.public_url, made.allowed_hosts) == (None, frozenset())
    (upstream,) = made.upstreams
    assert upstream.is_simulated
    assert (upstream.models, upstream.slots, upstream.key) == (
        ("*",),
        limits.POOL_SLOTS_DEFAULT,
        None,
    )


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    made = config(tmp_path, FILE, {"LOCAL_KEY": "k1", "ANTHROPIC_API_KEY": "k2"})
    assert (made.host, made.port, made.data) == ("127.0.0.3", 1003, Path("from-file"))
    assert made.public_url == "https://file.example/x"
    assert made.allowed_hosts == {"internal.example"}
    claude, local = made.upstreams
    assert (claude.models, claude.slots, claude.timeout_s, claude.key) == (
        ("claude-*",),
        5,
        60.0,
        "k2",
    )
    assert (local.models, local.key, local.url) == (("*",), "k1", "http://localhost:8000/base")


def test_how_answers_are_streamed_and_how_long_they_may_take(tmp_path: Path) -> None:
    def upstream(*lines: str) -> tuple[object, ...]:
        text = "\n".join(["[[upstream]]", "name = 'a'", "url = 'http://h'", *lines])
        (made,) = config(tmp_path, text).upstreams
        times = (made.timeout_s, made.stream_timeout_s)
        return (*times, made.first_byte_timeout_s, made.idle_timeout_s, made.stream_above_tokens)

    assert upstream() == (3_600.0, 21_600.0, 600.0, 300.0, 8_192)
    assert upstream("timeout = 60") == (60.0, 60.0, 600.0, 300.0, 8_192)
    assert upstream("first_byte_timeout = 7.5", "idle_timeout = 8")[2:4] == (7.5, 8.0)
    assert upstream("stream_above_tokens = 0")[4] == 0
    assert upstream('stream_above_tokens = "never"')[4] is None


ENVIRONMENT = {
    "BATCHYARD_HOST": "127.0.0.2",
    "BATCHYARD_PORT": "1002",
    "BATCHYARD_DATA": "from-environment",
    "BATCHYARD_PUBLIC_URL": "http://environment.example",
    "LOCAL_KEY": "k",
}


def test_workspaces_have_shares_and_the_star_is_all_others(tmp_path: Path) -> None:
    text = """
[[workspace]]
id = "wrkspc_a"
weight = 2
share_max = 0.5

[[workspace]]
id = "*"
share_max = 0.8
"""
    shares = config(tmp_path, text, upstreams=SIM).shares
    assert shares.of("wrkspc_a") == Share(2.0, 0.5)
    assert shares.of("wrkspc_b") == Share(1.0, 0.8)
    assert config(upstreams=SIM).shares.of("any") == Share(1.0, 1.0)


def test_the_number_of_workers_is_a_flag_a_variable_or_in_the_file(tmp_path: Path) -> None:
    text = "[server]\nworkers = 2"
    env = {"BATCHYARD_WORKERS": "3"}
    assert config(upstreams=SIM).workers == 1
    assert config(tmp_path, text, upstreams=SIM).workers == 2
    assert config(tmp_path, text, env, upstreams=SIM).workers == 3
    assert config(tmp_path, text, env, upstreams=SIM, workers=4).workers == 4
    assert "workers 0" in refused(upstreams=SIM, workers=0)


def test_the_environment_is_above_the_file(tmp_path: Path) -> None:
    made = config(tmp_path, FILE, ENVIRONMENT)
    assert (made.host, made.port, made.data) == ("127.0.0.2", 1002, Path("from-environment"))
    assert made.public_url == "http://environment.example"


def test_upstreams_of_the_environment_take_the_place_of_those_of_the_file(tmp_path: Path) -> None:
    env = {"BATCHYARD_UPSTREAMS": "sim=simulated:", "BATCHYARD_ALLOWED_HOSTS": "other.example"}
    made = config(tmp_path, FILE, env)
    assert [upstream.name for upstream in made.upstreams] == ["sim"]
    assert made.allowed_hosts == {"other.example"}


def test_flags_are_above_the_environment(tmp_path: Path) -> None:
    made = config(
        tmp_path,
        FILE,
        ENVIRONMENT,
        host="127.0.0.1",
        port=0,
        data=Path("from-flag"),
        upstreams=("one=http://h",),
    )
    assert (made.host, made.port, made.data) == ("127.0.0.1", 0, Path("from-flag"))
    assert [upstream.name for upstream in made.upstreams] == ["one"]


def test_empty_variables_count_as_absent(tmp_path: Path) -> None:
    made = config(tmp_path, FILE, dict.fromkeys(ENVIRONMENT, "") | {"LOCAL_KEY": "k"})
    assert (made.host, made.port, made.data) == ("127.0.0.3", 1003, Path("from-file"))


def test_upstreams_and_hosts_may_come_from_the_environment() -> None:
    made = config(
        env={"BATCHYARD_UPSTREAMS": "sim=simulated:", "BATCHYARD_ALLOWED_HOSTS": "A.example b"}
    )
    assert made.upstreams[0].name == "sim"
    assert made.allowed_hosts == {"a.example", "b"}


WRONG_FILES = [
    ("[server]\nhots = 1", "hots"),
    ("[other]\nx = 1", "other"),
    ('[[upstream]]\nname = "a"\nurl = "http://h"\nkey = "secret"', "key"),
    ('[server]\nport = "80"', "port"),
    ("[server]\nport = true", "port"),
    ("[server]\nport = 70000", "port 70000"),
    ("[server]\nport = -1", "port -1"),
    ("[server]\nhost = 5", "host"),
    ("[server]\nallowed_hosts = 'x'", "allowed_hosts"),
    ("[server\n", "batchyard.toml"),
    ("[[upstream]]\nname = 'a'", "url"),
    ("[[upstream]]\nname = 'A b'\nurl = 'http://h'", "upstream name A b"),
    ("[[upstream]]\nname = 'a'\nurl = 'http://h'\nslots = 0", "slots from 1 to 100000"),
    ("[[upstream]]\nname = 'a'\nurl = 'http://h'\ntimeout = 0.5", "timeout from 1 to 86400"),
    ("[[upstream]]\nname = 'a'\nurl = 'http://h'\ntimeout = nan", "a timeout from 1 to 86400"),
    (
        "[[upstream]]\nname = 'a'\nurl = 'http://h'\nfirst_byte_timeout = 0",
        "a first_byte_timeout from 1 to 86400",
    ),
    (
        "[[upstream]]\nname = 'a'\nurl = 'http://h'\nidle_timeout = inf",
        "an idle_timeout from 1 to 86400",
    ),
    (
        "[[upstream]]\nname = 'a'\nurl = 'http://h'\nstream_above_tokens = -1",
        'stream_above_tokens -1: a whole number from 0, or "never", is allowed',
    ),
    (
        "[[upstream]]\nname = 'a'\nurl = 'http://h'\nstream_above_tokens = 'no'",
        "no: a whole number",
    ),
    ("[[upstream]]\nname = 'a'\nurl = 'http://h'\nstream_above_tokens = 1.5", "int"),
    ("[[upstream]]\nname = 'a'\nurl = 'http://h'\nstream_above_tokens = true", "int"),
    ("[[upstream]]\nname = 'a'\nurl = 'http://h'\nkey_env = 'NOPE'", "NOPE is not set"),
    (
        "[[upstream]]\nname = 'a'\nurl = 'http://h'\n[[upstream]]\nname = 'b'\nurl = 'http://i'",
        "upstream a takes all models",
    ),
    (
        "upstream = [{name='a', url='http://h', models=['x']}, {name='a', url='http://i'}]",
        "upstream a is configured twice",
    ),
    ("[server]\nworkers = 0", "workers 0"),
    ("[server]\nworkers = 65", "workers 65: 1 to 64 are allowed"),
    ("[server]\nworkers = '2'", "workers"),
    ("[[workspace]]\nweight = 2", "id"),
    ("[[workspace]]\nid = ''", "an id is needed"),
    ("[[workspace]]\nid = 'a'\nwieght = 2", "wieght"),
    ("[[workspace]]\nid = 'a'\nweight = 0", "workspace a: a weight from 0.01 to 100"),
    ("[[workspace]]\nid = 'a'\nweight = nan", "workspace a: a weight from 0.01 to 100"),
    ("[[workspace]]\nid = 'a'\nshare_max = 0", "workspace a: a share_max above 0 and up to 1"),
    ("[[workspace]]\nid = 'a'\nshare_max = 1.1", "workspace a: a share_max above 0"),
    ("workspace = [{id = 'a'}, {id = 'a'}]", "workspace a: an id is needed, and each one once"),
    ("[server]\npublic_url = 'ftp://x'", "public_url ftp://x"),
    ("[server]\npublic_url = 'http://'", "public_url"),
    ("[server]\npublic_url = 'http://h?x=1'", "public_url"),
    ("[server]\npublic_url = 'http://[h'", "public_url"),
]


@pytest.mark.parametrize(("text", "words"), WRONG_FILES)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, words: str) -> None:
    assert words in refused(tmp_path, text, upstreams=() if "upstream" in text else SIM)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml: No such file"):
        load(file=tmp_path / "none.toml", environment={}, upstreams=SIM)
    with pytest.raises(ConfigError, match="cannot read"):
        load(file=tmp_path, environment={}, upstreams=SIM)
    (tmp_path / "latin.toml").write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match=r"latin\.toml"):
        load(file=tmp_path / "latin.toml", environment={}, upstreams=SIM)


WRONG_FLAGS = [
    "",
    "sim",
    "sim=",
    "=http://h",
    "A=http://h",
    "a b=http://h",
    "x" * 33 + "=http://h",
    "-a=http://h",
    "a\n=http://h",
    "a=h",
    "a=ftp://h",
    "a=file:///etc/passwd",
    "a=http://",
    "a=https:api.anthropic.com",
    "a=http://user:hunter2@h",
    "a=http://user@h",
    "a=https://api.anthropic.com@evil.example",
    "a=http://[::1",
    "a=http://[zz]",
    "a=javascript:alert(1)",
]


@pytest.mark.parametrize("flag", WRONG_FLAGS)
def test_a_wrong_upstream_is_refused_without_showing_a_password(flag: str) -> None:
    message = refused(upstreams=(flag,))
    assert "upstream" in message
    assert "hunter2" not in message


@pytest.mark.parametrize("port", ["x", "", "-1", "65536", "1e3", "9" * 5_000, "80 80"])
def test_a_wrong_port_in_the_environment_is_refused(port: str) -> None:
    if port == "":
        assert config(env={"BATCHYARD_PORT": port}, upstreams=SIM).port == 8787
        return
    assert "a number from 0 to 65535 is allowed" in refused(
        env={"BATCHYARD_PORT": port}, upstreams=SIM
    )


@pytest.mark.parametrize("scheme", ["tcp", "udp", "sctp"])
def test_what_kubernetes_sets_for_a_service_of_our_name_is_no_port(scheme: str) -> None:
    environment = {"BATCHYARD_PORT": f"{scheme}://10.96.12.7:80"}
    assert config(env=environment, upstreams=SIM).port == 8787
    assert config(env=environment, upstreams=SIM, port=9).port == 9


def test_no_upstream_at_all_is_refused_with_two_ways_out() -> None:
    message = refused()
    assert "claude=https://api.anthropic.com" in message
    assert "sim=simulated:" in message


# Keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://api.anthropic.com",
        "https://api.anthropic.com/",
        "https://API.Anthropic.com",
        "https://api.anthropic.com:443",
    ],
)
def test_the_anthropic_key_goes_to_its_own_host(url: str) -> None:
    made = config(env={"ANTHROPIC_API_KEY": "secret"}, upstreams=(f"a={url}",))
    assert made.upstreams[0].key == "secret"


@pytest.mark.parametrize(
    "url",
    [
        "https://relay.example",
        "https://api.anthropic.com.evil.example",
        "https://evil.example/api.anthropic.com",
        "https://evil.example?api.anthropic.com",
        "https://evil.example#@api.anthropic.com",
        "https://xapi.anthropic.com",
        "https://anthropic.com",
        "http://localhost:8000",
        "http://api.anthropic.com",  # in the clear
        "simulated:",
    ],
)
def test_the_anthropic_key_never_goes_to_a_foreign_host(url: str) -> None:
    made = config(env={"ANTHROPIC_API_KEY": "secret"}, upstreams=(f"a={url}",))
    assert made.upstreams[0].key is None


def test_a_key_that_is_named_goes_where_its_name_says(tmp_path: Path) -> None:
    text = "[[upstream]]\nname='a'\nurl='https://relay.example'\nkey_env='ANTHROPIC_API_KEY'"
    assert config(tmp_path, text, {"ANTHROPIC_API_KEY": "k"}).upstreams[0].key == "k"


def test_each_upstream_has_a_variable_of_its_own() -> None:
    env = {"BATCHYARD_UPSTREAM_MY_RELAY_2_KEY": "mine", "ANTHROPIC_API_KEY": "other"}
    for url in ("https://relay.example", "https://api.anthropic.com"):
        assert config(env=env, upstreams=(f"my-relay_2={url}",)).upstreams[0].key == "mine"


def test_a_key_is_not_part_of_what_is_shown() -> None:
    made = config(env={"ANTHROPIC_API_KEY": "secret"}, upstreams=("a=https://api.anthropic.com",))
    assert "secret" not in repr(made)
