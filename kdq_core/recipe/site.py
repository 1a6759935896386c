"""Where recipes run. Importable without torch; defaults are stated here and nowhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from kdq_core.errors import RecipeError, listing
from kdq_core.frozen import Frozen
from kdq_core.recipe.gpus import DEVICE, read_devices

Executors = Literal["inline", "threads", "ray", "dask", "pool"]
ENVIRONMENT = {
    "home": "KDQ_HOME",
    "store_address": "KDQ_STORE",
    "device": "KDQ_DEVICE",
    "devices": "KDQ_DEVICES",
    "cpu_slots": "KDQ_CPU_SLOTS",
    "gpu_share": "KDQ_GPU_SHARE",
    "leases": "KDQ_LEASES",
    "threads": "KDQ_THREADS",
    "precision": "KDQ_PRECISION",
    "tracking_uri": "KDQ_TRACKING_URI",
    "tracking_wait": "KDQ_TRACKING_WAIT_SECONDS",
    "prefect_api": "PREFECT_API_URL",
    "signing_key": "KDQ_SIGNING_KEY",
    "tensorboard": "KDQ_TENSORBOARD",
    "executor": "KDQ_EXECUTOR",
    "workers": "KDQ_WORKERS",
    "pool": "KDQ_POOL",
}
"""The environment variable behind each field of `Site`."""
LEASES = "/var/tmp/kdq-leases"  # noqa: S108 - a folder of the machine, which its users share
"""A folder that all users of the machine can write to; `/tmp` is often private to a service."""


def _leases() -> Path:
    return Path(os.environ.get(ENVIRONMENT["leases"]) or LEASES)


class Site(Frozen):
    """Where recipes run: one folder for all state, the devices, the services to use."""

    home: Path = Field(description="the folder below which KDQ writes everything")
    store_address: str | None = Field(
        default=None,
        pattern=r"^[a-z][a-z0-9+.-]*://[^\s?#@]+$",
        description="an fsspec address that other processes can read, such as s3://bucket/prefix or "
        "file:///mnt/share/kdq, without user or password",
    )
    device: str = Field(default="cpu", pattern=DEVICE, description="'cpu', 'cuda' or 'cuda:<number>'")
    devices: tuple[str, ...] = Field(
        default=(), description="the devices that stages share, the first of which is `device`; default: that alone"
    )
    cpu_slots: int = Field(default=1, ge=1, le=1024, description="how many stages compute on the CPU at once")
    gpu_share: float = Field(
        default=1.0, gt=0, le=1, description="share of a GPU's memory that a stage takes; 0.5: two stages a GPU"
    )
    leases: Path = Field(
        default_factory=_leases, description="folder of the machine's lock files, which all its homes and users share"
    )
    threads: int = Field(default=2, ge=1, le=1024, description="CPU threads of a stage; each key holds it")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="precision of fits in float; auto: fp32; each key of such a fit holds what it is"
    )
    tracking_uri: str | None = Field(
        default=None, description="MLflow's tracking URI; default: a SQLite file below `home`"
    )
    tracking_wait: float = Field(
        default=600, ge=0, description="seconds that `register` waits for a tracking server that does not answer"
    )
    prefect_api: str | None = Field(default=None, description="Prefect's API URL; default: a server of this site")
    signing_key: Path | None = Field(
        default=None, description="file of the Ed25519 key (PEM) that signs versions and promotions"
    )
    tensorboard: Path | None = Field(
        default=None, description="folder for TensorBoard's event files, one below it a run; default: none are written"
    )
    executor: Executors = Field(default="threads", description="what runs the stages that compute; no key holds it")
    workers: int | None = Field(
        default=None, ge=1, le=1024, description="the most stages at once; default: as many as there are devices"
    )
    pool: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="letters, digits, '.', '_' and '-': the work pool in Prefect",
    )

    @classmethod
    def from_environment(cls, **overrides: Any) -> Site:
        """Read KDQ_HOME, KDQ_DEVICES, KDQ_THREADS, KDQ_PRECISION, KDQ_TRACKING_URI, PREFECT_API_URL and the others.

        Args:
            **overrides: fields that win over the environment; `None` means "not given".

        Raises:
            RecipeError: a field does not allow its value, or KDQ_DEVICE and KDQ_DEVICES are both set.
        """
        defaults: dict[str, Any] = {"home": ".kdq", "threads": min(os.cpu_count() or 1, 8)}
        found = {name: os.environ.get(variable) for name, variable in ENVIRONMENT.items()}
        given = {name: value for name, value in overrides.items() if value is not None}
        fields = defaults | {name: value for name, value in found.items() if value}
        fields = _with_devices(fields, given) | given
        try:
            fields["home"] = Path(fields["home"]).expanduser().resolve()
        except RuntimeError as error:  # the home of an unknown user, or a circle of links
            subject = _site_subject("home", given)
            raise RecipeError(
                f"{subject} is {str(fields['home'])!r}; allowed: the path of a folder ({str(error).rstrip('.')})"
            ) from None
        for name in ("tensorboard", "leases"):
            if fields.get(name):
                fields[name] = Path(fields[name]).absolute()
        try:
            return cls(**fields)
        except ValidationError as error:
            raise RecipeError("\n".join(_site_problems(error, given))) from None

    @field_validator("store_address")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("file://") and not value.startswith("file:///"):
            raise ValueError("a path that is not absolute")
        if value is not None and value.startswith("memory://"):
            raise ValueError("the memory of one process")
        return value

    @property
    def all_devices(self) -> tuple[str, ...]:
        """The devices that stages share."""
        return self.devices or (self.device,)

    def at(self, *devices: str) -> Site:
        """The same site as a stage sees it that runs on these devices."""
        return self.model_copy(update={"device": devices[0], "devices": devices if len(devices) > 1 else ()})

    @property
    def store(self) -> Path:
        """Folder of the content-addressed store; with `store_address`, of its read cache."""
        return self.home / "store"

    @property
    def mlflow_uri(self) -> str:
        """The tracking URI that KDQ uses; libpq's `postgres://` is `postgresql://` to SQLAlchemy."""
        given = self.tracking_uri or f"sqlite:///{self.home / 'mlflow' / 'mlflow.db'}"
        return given.replace("postgres://", "postgresql://", 1) if given.startswith("postgres://") else given


def _with_devices(fields: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the environment with the devices that KDQ_DEVICES names, unless the caller gives a device."""
    if "device" in given or "devices" in given:
        return {name: value for name, value in fields.items() if name not in ("device", "devices")}
    text = fields.pop("devices", None)
    if text is None:
        return fields
    if "device" in fields:
        raise RecipeError(
            f"KDQ_DEVICE is {fields['device']!r} and KDQ_DEVICES is {text!r}; unset one of them: KDQ_DEVICE names one "
            "device, KDQ_DEVICES one or several"
        )
    try:
        found = read_devices(text)
    except ValueError as error:
        raise RecipeError(f"KDQ_DEVICES is {text!r}; allowed: {error}") from None
    return fields | {"device": found[0], "devices": found if len(found) > 1 else ()}


def _site_subject(name: str, given: Mapping[str, Any]) -> str:
    """How a message names the field `name`: by its environment variable, unless the caller gave it."""
    return f"the site's {name!r}" if name in given or name not in ENVIRONMENT else ENVIRONMENT[name]


def _site_problems(error: ValidationError, given: Mapping[str, Any]) -> Iterator[str]:
    from kdq_core.recipe.explain import allowed

    schema = Site.model_json_schema()
    for detail in error.errors():
        name = str(detail["loc"][0])
        field = schema["properties"].get(name)
        if field is None:
            yield f"a site has no field {name!r}; it has: {listing(ENVIRONMENT)}"
            continue
        described = any("pattern" in one for one in (field, *field.get("anyOf", ())))
        words = field["description"] if described else allowed(field, schema)
        yield f"{_site_subject(name, given)} is {_shown(detail['input'])!r}; allowed: {words}"


def _shown(value: Any) -> Any:
    """A value without what may be a password: what an address has before its `@` and behind its `?`."""
    return re.sub(r"//.*@", "//***@", value).partition("?")[0] if isinstance(value, str) else value
