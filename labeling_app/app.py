"""The labeling app: `python -m labeling_app.app` serves it. Its pages are in views/."""

import gc
import os
import sys
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.middleware import Middleware

from labeling_app import running
from labeling_app.api import Api
from labeling_app.app_settings import OIDC_SECRET_VARIABLE, AppSettings
from labeling_app.gate import SESSION_HEADER, Gate, inline_digests
from labeling_app.launch import HOST_VARIABLE, PORT_VARIABLE
from labeling_app.page_api import PageApi
from labeling_app.sign_in_pages import SignInPages
from labeling_app.store import PAGE_KEY, Store
from pipeline.core.errors import UserError

_LOOPBACK = ("127.0.0.1", "localhost")
_SWITCH_S = 0.0005


def build(store: Store, settings: AppSettings, host: str = _LOOPBACK[0]) -> st.App:
    """The whole ASGI application: Streamlit behind the gate, with our own routes beside it."""
    page = (Path(st.__file__).parent / "static" / "index.html").read_text("utf-8")
    gate = Middleware(
        Gate,
        store=store,
        settings=settings,
        inline_scripts=inline_digests(page),
        hosts=_names(host, settings),
    )
    return st.App(
        Path(__file__).parent / "views" / "main.py",
        routes=[
            *SignInPages(store, settings).routes(),
            *PageApi(store, settings).routes(),
            *Api(store).routes(),
        ],
        middleware=[gate],
        secrets=_secrets(store, settings),
    )


def server_config(host: str, port: int, settings: AppSettings) -> dict[str, Any]:
    """Streamlit's own options: bound to one address, calling nobody home."""
    config: dict[str, Any] = {
        "server.address": host,
        "server.port": port,
        "server.headless": True,
        # A whole collection after every run of a page would take most of its time; Python's own
        # come when there is something to collect.
        "runner.postScriptGC": False,
        "server.fileWatcherType": "none",
        "server.maxUploadSize": 1,
        "server.trustedUserHeaders": {SESSION_HEADER: "flywheel_session"},
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showSidebarNavigation": False,
        "theme.light.primaryColor": "#2f6f8f",
        "theme.dark.primaryColor": "#3f86a8",
        "theme.baseRadius": "6px",
        "logger.level": "warning",
    }
    if names := _names(host, settings):
        config["server.allowedHosts"] = list(names)
    return config


def _names(host: str, settings: AppSettings) -> tuple[str, ...]:
    """The host names that lead here, () for any: that is for a proxy to decide."""
    return settings.hosts or (_LOOPBACK if host in _LOOPBACK else ())


def _secrets(store: Store, settings: AppSettings) -> dict[str, Any]:
    oidc = settings.oidc
    if oidc is None:
        return {}
    secret = os.environ.get(OIDC_SECRET_VARIABLE, "")
    if not secret:
        raise UserError(f"labels.oidc needs the client's secret in {OIDC_SECRET_VARIABLE}")
    return {
        "auth": {
            "redirect_uri": f"{oidc.address.rstrip('/')}/oauth2callback",
            "cookie_secret": store.key(PAGE_KEY).hex(),
            "client_id": oidc.client_id,
            "client_secret": secret,
            "server_metadata_url": oidc.metadata_url,
        }
    }


def main() -> None:
    settings = running.settings()
    gc.collect()
    gc.freeze()  # what lives as long as the process is not looked through again and again
    gc.set_threshold(20_000, 20, 100)  # a page makes thousands of objects, and few of them cycles
    # Each answer of the database waits for the interpreter: behind every other busy thread, this
    # long at most.
    sys.setswitchinterval(_SWITCH_S)
    host = os.environ.get(HOST_VARIABLE, "127.0.0.1")
    port = int(os.environ.get(PORT_VARIABLE, "8501"))
    build(running.store(), settings, host).run(config=server_config(host, port, settings))


if __name__ == "__main__":
    main()
