"""The installation's settings: environment variables that start with HLSRELAY_. Streams have fields of their own (registry)."""

from __future__ import annotations

import os
import re
import shutil
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from hlsrelay.codecs import BY_NAME
from hlsrelay.errors import ConfigError
from hlsrelay.urls import checked_base

PREFIX = "HLSRELAY_"
LOCAL = "local"
_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?")
Network = IPv4Network | IPv6Network
LOCAL = "local"
_DASK = re.compile(r"dask(\+tls)?://([\w.-]+|\[[0-9a-fA-F:.]+\]):\d{1,5}")


def default_data_dir() -> Path:
    """Return the user's own place for data (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "hlsrelay"


class Settings(BaseSettings):
    """Read once at start. Each field's description is what the README's table says."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    redis_url: str = Field(
        "", description="Redis to steer by, such as redis://host:6379/0 or unix:///run/redis.sock; empty: our own, in the data directory"
    )
    redis_prefix: str = Field("hlsrelay:", description="what every Redis key starts with; {hlsrelay}: on a Redis Cluster")
    data: Path = Field(default_factory=default_data_dir, description="where segments and playlists are kept")
    storage: str = Field(
        LOCAL,
        description="where streams are published: local is the data directory; s3://bucket/prefix, for nodes that share their output, "
        "is reached as the usual AWS_ variables say (AWS_REGION, AWS_ENDPOINT_URL, ...)",
    )
    http: str = Field("127.0.0.1:8080", description="address and port to serve on; port 0 takes a free one; none serves nothing")
    node: str = Field("", description="this node's name in Redis; empty: host name and process id")
    advertise: str = Field(
        "",
        pattern=r"^(https?://[^/\s]+)?$",
        description="URL at which other nodes reach this one's web server, such as http://10.0.0.5:8080; empty: its address and port, "
        "or the host's name where it serves on all addresses",
    )
    api_token: str = Field(
        "", description="what the HTTP API wants in Authorization: Bearer; empty: one is made, and kept in the data directory (api-token)"
    )
    capacity: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="how much `hlsrelay worker` takes on: 1 for a stream, 10 more for each rung; 0: 50 per processor core",
    )
    allow_networks: Annotated[tuple[Network, ...], NoDecode] = Field(
        (), description="non-public address ranges that sources may be in, such as 127.0.0.0/8,10.1.0.0/16; empty: none"
    )
    transcode_slots: int = Field(0, ge=0, le=1024, description="how many ffmpeg jobs run at once; 0: one per processor core")
    encoder: str = Field(
        LOCAL,
        description="who makes ladders: local, this machine; or dask://host:8786, a Dask scheduler's workers, and this machine what they "
        "don't (dask+tls:// with certificates)",
    )
    memory_pressure: int = Field(
        90, ge=10, le=100, description="percent of the memory in use, of the cgroup or the machine, from which on ladder jobs are shed"
    )
    ffmpeg: Path | None = Field(
        None, description="the ffmpeg that makes ladders; empty: the one on PATH, or where that is older than 7.0, or not there, our own"
    )
    encoders: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="ffmpeg encoders to prefer, such as h264_nvenc,hevc_nvenc; each is tried once, when first needed; empty: in software",
    )
    preload: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="base URLs of caches, blanks between, that the files of all streams are pulled through before they are listed, "
        "beside those of a stream's own field preload",
    )
    log: str = Field("auto", pattern="^(auto|text|json)$", description="log format on stderr: auto is text on a terminal, JSON elsewhere")

    @field_validator("storage")
    @classmethod
    def _bucket(cls, value: str) -> str:
        if value != LOCAL and not _BUCKET.fullmatch(value):
            raise ValueError("write local, or s3://bucket/prefix: a bucket's name, and then letters, digits, '.', '_', '-' and '/'")
        return value.rstrip("/")

    @field_validator("ffmpeg", mode="before")
    @classmethod
    def _program(cls, value: Any) -> Any:
        if not value:
            return None
        found = shutil.which(value)
        if found is None:
            raise ValueError("there is no such program: write the path of an ffmpeg, or a name on PATH")
        return found

    @field_validator("encoder")
    @classmethod
    def _scheme(cls, value: str) -> str:
        if value != LOCAL and not _DASK.fullmatch(value):
            raise ValueError("write local, or where a Dask scheduler is, such as dask://scheduler:8786 or dask+tls://scheduler:8786")
        return value

    @field_validator("encoders", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        names = tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else tuple(value)
        if unknown := [name for name in names if name not in BY_NAME]:
            raise ValueError(f"no encoder {unknown[0]} is known here: name some of {', '.join(BY_NAME)}")
        return names

    @field_validator("preload", mode="before")
    @classmethod
    def _bases(cls, value: Any) -> Any:
        try:
            return tuple(checked_base(word) for word in value.split()) if isinstance(value, str) else value
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @property
    def scheduler(self) -> str:
        """The Dask scheduler's address as Dask writes it; empty: ladders are made on this machine alone."""
        if self.encoder == LOCAL:
            return ""
        scheme, _, place = self.encoder.partition("://")
        return f"{'tls' if scheme.endswith('+tls') else 'tcp'}://{place}"

    @field_validator("allow_networks", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(ip_network(word.strip()) for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def _refuse_misspelt() -> None:
    """Refuse a variable that is almost a setting: it would do nothing, and nobody would know. Others may be anyone's."""
    names = [name.upper() for name in Settings.model_fields]
    for given in sorted(os.environ):
        name = given.removeprefix(PREFIX)
        if not given.startswith(PREFIX) or name in names or name.endswith(("_PORT", "_HOST")):  # Kubernetes sets these for its services
            continue
        if meant := get_close_matches(name, names, n=1, cutoff=0.7):
            raise ConfigError(f"{given} is no setting: did you mean {PREFIX}{meant[0]}?")


def load_settings(**overrides: Any) -> Settings:
    """Return the settings from the environment, *overrides* (given on the command line) first. Raises ConfigError."""
    _refuse_misspelt()
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"][:1]).upper()
        said = "" if name == "PRELOAD" else f" (it says {first.get('input')!r})"  # its error quotes it, without the password
        raise ConfigError(f"HLSRELAY_{name}: {first['msg']}{said}") from None
