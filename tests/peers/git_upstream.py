"""Serves a git repository over HTTPS as static files (the dumb protocol) to requests with the token.

`git_upstream.py '{"tls": DIR, "leaf": NAME, "token": TEXT}'` creates a repository with one commit, whose file `a` holds "hello",
serves it at /r.git, and prints {"listening": {"https": port}}. It exits when its stdin closes.
"""

import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

options = {"leaf": "server", **json.loads(sys.argv[1])}


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def send_head(self):
        if self.headers.get_all("authorization") != [f"Bearer {options['token']}"]:
            self.send_error(403)
            return None
        return super().send_head()

    def log_message(self, *_):
        pass


with tempfile.TemporaryDirectory() as root:
    run = partial(subprocess.run, cwd=root, check=True, stdout=subprocess.DEVNULL, env={
        "PATH": os.environ["PATH"], "HOME": root, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@a.test",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@a.test"})
    run(["git", "init", "--quiet", "tree"])
    with open(f"{root}/tree/a", "w") as file:
        file.write("hello\n")
    run(["git", "-C", "tree", "add", "a"])
    run(["git", "-C", "tree", "commit", "--quiet", "-m", "a"])
    run(["git", "clone", "--quiet", "--bare", "tree", "r.git"])
    run(["git", "-C", "r.git", "update-server-info"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=root))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{options['tls']}/{options['leaf']}.pem", f"{options['tls']}/{options['leaf']}.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"listening": {"https": server.server_port}}), flush=True)
    sys.stdin.read()
