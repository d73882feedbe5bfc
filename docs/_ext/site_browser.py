"""Look at finished pages in a browser as narrow as a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

#: Headless Chromium, where it is installed.
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
#: Pixels; few phones have less.
WIDTH = 390

# Frames of one page, for a browser takes seconds to start.
_PROBE = """<!doctype html><pre id=found></pre><script>
(async () => {
  const found = {};
  for (const page of PAGES) {
    const frame = document.createElement("iframe");
    frame.width = WIDTH;
    frame.style.border = 0;
    frame.src = "/" + page;
    document.body.append(frame);
    await new Promise((loaded) => { frame.onload = loaded; });
    await new Promise((drawn) => setTimeout(drawn, 50));
    const width = frame.contentDocument.documentElement.scrollWidth;
    if (width > WIDTH) found[page] = width;
    frame.remove();
  }
  document.getElementById("found").textContent = JSON.stringify(found);
})()
</script>"""


def wide_pages(site: Path, pages: Sequence[str]) -> dict[str, int]:
    """Return the widths of pages that one has to scroll sideways on a phone.

    Args:
        site: the folder of all pages.
        pages: some of them, by their paths in it.

    Raises:
        RuntimeError: if the browser did not get through.
    """
    assert BROWSER is not None
    probe = _PROBE.replace("PAGES", json.dumps(list(pages))).replace("WIDTH", str(WIDTH)).encode()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            if self.path != "/_probe":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(probe)))
            self.end_headers()
            self.wfile.write(probe)
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with tempfile.TemporaryDirectory() as profile:
            flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
            flags += [f"--user-data-dir={profile}", "--virtual-time-budget=60000"]
            address = f"http://127.0.0.1:{server.server_port}/_probe"
            done = subprocess.run(
                [BROWSER, *flags, address], capture_output=True, text=True, timeout=300, check=False
            )
    finally:
        server.shutdown()
        server.server_close()
    found = re.search(r'<pre id="found">(\{.*?\})</pre>', done.stdout, re.S)
    if found is None:
        raise RuntimeError(f"{BROWSER} did not look at all pages: {done.stderr[-500:]}")
    return json.loads(html.unescape(found[1]))
