"""The relay's own HTTP server: live playlists and segments, the page that plays them, the API, health and metrics."""

from hlsrelay.web.api import api_routes, local_token
from hlsrelay.web.app import create_app
from hlsrelay.web.server import advertised, serve
from hlsrelay.web.site import Site

__all__ = ["Site", "advertised", "api_routes", "create_app", "local_token", "serve"]
