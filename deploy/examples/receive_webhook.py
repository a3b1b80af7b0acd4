"""A receiver of webhooks: receive_webhook.py PORT SECRET (needs `pip install standardwebhooks`)."""  # noqa: INP001 - no package

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

seen: set[str] = set()  # keep it in your database: an event may come twice, under one id


class Receiver(BaseHTTPRequestHandler):  # noqa: D101
    def do_POST(self) -> None:  # noqa: D102
        body = self.rfile.read(min(int(self.headers["content-length"]), 1 << 20))
        try:
            event = Webhook(sys.argv[2]).verify(body, dict(self.headers))
        except WebhookVerificationError:
            self.send_error(401)
        else:
            if event["id"] not in seen:
                seen.add(event["id"])
                sys.stdout.write(f"{event['type']} {event['subject']}\n")
            self.send_response(204)
            self.end_headers()


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
