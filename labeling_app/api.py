"""The HTTP API for programs, beside the app: import, export, progress. docs/labeling-api.md."""

from starlette.routing import Route

from labeling_app.store import Store


def api_routes(store: Store) -> list[Route]:
    return []
