"""A misbehaving HTTP/2 client (Python's h2). Argument: JSON {port, authority, path, probe}.

Prints one JSON object with what it observed: `status`, `reset` (stream error code), `goaway` (error code), `closed`,
`settings`, `body_bytes`.
"""

import collections
import json
import socket
import struct
import sys

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import hpack
import hyperframe.frame as frames
import wsproto
from wsproto.events import CloseConnection, TextMessage

options = json.loads(sys.argv[1])
observed = {}


class Session:
    def __init__(self):
        self.socket = socket.create_connection(("127.0.0.1", options["port"]), timeout=15)
        # Without validation and normalization, so that malformed fields are sent as they are.
        config = h2.config.H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.waiting = collections.deque()
        self.h2.initiate_connection()
        self.flush()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def raw(self, *list_of_frames):
        self.socket.sendall(b"".join(frame.serialize() for frame in list_of_frames))

    def events(self):
        """Yields events until the connection closes or the socket times out; a caller may stop and continue later."""
        while True:
            while self.waiting:
                yield self.waiting.popleft()
            try:
                data = self.socket.recv(65536)
            except ConnectionError:
                data = b""
            except TimeoutError:
                observed["silent"] = True
                return
            if not data:
                observed["closed"] = True
                return
            try:
                self.waiting.extend(self.h2.receive_data(data))
            except h2.exceptions.ProtocolError:
                pass
            try:
                self.flush()
            except OSError:
                pass

    def until(self, *kinds):
        for event in self.events():
            note(event)
            if isinstance(event, kinds):
                return event
        return None

    def get(self, stream, headers=(), path=None, end=True):
        self.h2.send_headers(stream, request(headers, path), end_stream=end)


def note(event):
    if isinstance(event, h2.events.ResponseReceived):
        observed["status"] = int(dict(event.headers)[b":status"])
    elif isinstance(event, h2.events.StreamReset):
        observed["reset"] = int(event.error_code)
        observed["resets"] = observed.get("resets", 0) + 1
    elif isinstance(event, h2.events.ConnectionTerminated):
        observed["goaway"] = int(event.error_code)
    elif isinstance(event, h2.events.RemoteSettingsChanged):
        observed["settings"] = {int(key): change.new_value for key, change in event.changed_settings.items()}
    elif isinstance(event, h2.events.DataReceived):
        observed["body_bytes"] = observed.get("body_bytes", 0) + len(event.data)


def request(headers=(), path=None, method="GET", authority=None):
    return [
        (":method", method),
        (":scheme", "http"),
        (":authority", authority or options["authority"]),
        (":path", path or options["path"]),
        *headers,
    ]


END = (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)

# --- malformed requests (RFC 9113 §8) ------------------------------------------------------------------------------------
WRONG = {
    "crlf_in_value": request([("x-a", "1\r\nx-b: 2")]),
    "crlf_in_path": request(path="/x\r\nx-b:2"),
    "nul_in_value": request([("x-a", "1\0")]),
    "bad_method": request(method="GE T"),
    "te": request([("te", "gzip")]),
    "connection_field": request([("connection", "close")]),
    "transfer_encoding": request([("transfer-encoding", "chunked")]),
    "upper_case": request([("X-Upper", "1")]),
    "pseudo_twice": request() + [(":path", "/other")],
    "pseudo_late": request([("x-a", "1")]) + [(":scheme", "http")],
    "pseudo_unknown": request() + [(":other", "1")],
    "userinfo": request(authority="user:pass@" + options["authority"]),
    "two_hosts": request([("host", "evil.test")]),
    "no_path": [field for field in request() if field[0] != ":path"],
}


def wrong(headers):
    session = Session()
    block = hpack.Encoder().encode(headers)
    frame = frames.HeadersFrame(1, block, flags=["END_HEADERS", "END_STREAM"])
    session.h2.get_next_available_stream_id()
    # The library does not track streams that it did not open itself: read the response frame by frame.
    session.raw(frame)
    read_frames(session)


def read_frames(session):
    buffer = b""
    decoder = hpack.Decoder()
    while "status" not in observed and "reset" not in observed and "goaway" not in observed:
        try:
            data = session.socket.recv(65536)
        except (ConnectionError, TimeoutError):
            data = b""
        if not data:
            observed["closed"] = True
            return
        buffer += data
        while len(buffer) >= 9:
            frame, length = frames.Frame.parse_frame_header(memoryview(buffer[:9]))
            if len(buffer) < 9 + length:
                break
            frame.parse_body(memoryview(buffer[9 : 9 + length]))
            buffer = buffer[9 + length :]
            if isinstance(frame, frames.HeadersFrame):
                observed["status"] = int(dict(decoder.decode(frame.data))[":status"])
            elif isinstance(frame, frames.RstStreamFrame):
                observed["reset"] = frame.error_code
            elif isinstance(frame, frames.GoAwayFrame):
                observed["goaway"] = frame.error_code


def content_length_mismatch():
    session = Session()
    session.h2.send_headers(1, request([("content-length", "5")], method="POST"))
    session.raw(frames.DataFrame(1, b"abc", flags=["END_STREAM"]))
    read_frames(session)


# --- floods --------------------------------------------------------------------------------------------------------------
def flood(session, parts):
    """Sends all parts, or until the peer closes the connection; then waits for its reaction."""
    session.socket.settimeout(5)
    try:
        for part in parts:
            session.socket.sendall(part)
        session.socket.sendall(frames.PingFrame(0, b"12345678").serialize())
    except OSError:
        observed["cut"] = True
    session.until(h2.events.ConnectionTerminated, h2.events.PingAckReceived)


def opening(session):
    session.until(h2.events.RemoteSettingsChanged)


def rapid_reset():
    session = Session()
    opening(session)
    encoder = hpack.Encoder()

    def parts():
        for number in range(20_000):
            stream = 2 * number + 1
            head = frames.HeadersFrame(stream, encoder.encode(request()), flags=["END_HEADERS", "END_STREAM"])
            yield head.serialize() + frames.RstStreamFrame(stream, 8).serialize()

    flood(session, parts())


def made_you_reset():
    session = Session()
    opening(session)
    encoder = hpack.Encoder()

    def parts():
        for number in range(20_000):
            stream = 2 * number + 1
            head = frames.HeadersFrame(stream, encoder.encode(request()), flags=["END_HEADERS", "END_STREAM"])
            # A window increment of 0: the server must reset the stream (RFC 9113 §6.9).
            yield head.serialize() + struct.pack(">I", 4)[1:] + b"\x08\x00" + struct.pack(">II", stream, 0)

    flood(session, parts())


def continuation():
    session = Session()
    opening(session)
    head = frames.HeadersFrame(1, hpack.Encoder().encode(request()), flags=["END_STREAM"])
    more = frames.ContinuationFrame(1, b"\x00\x01a\x7f\x80\x7e" + b"v" * 16_000).serialize()
    flood(session, [head.serialize(), *[more] * 2_000])


def hpack_bomb():
    session = Session()
    opening(session)
    encoder = hpack.Encoder()
    encoder.header_table_size = 4096
    block = encoder.encode([*request(), ("x-big", "b" * 4000)])
    # Each byte refers to the entry just inserted, of four thousand bytes.
    head = frames.HeadersFrame(1, block + b"\xbe" * 12_000, flags=["END_HEADERS", "END_STREAM"])
    flood(session, [head.serialize()])


def settings_flood():
    session = Session()
    opening(session)
    flood(session, [frames.SettingsFrame(0, {4: 65535}).serialize()] * 30_000)


def ping_flood():
    session = Session()
    opening(session)
    flood(session, [frames.PingFrame(0, b"abcdefgh").serialize()] * 30_000)


def empty_data_flood():
    session = Session()
    opening(session)
    session.h2.send_headers(1, request(method="POST"))
    session.flush()
    flood(session, [frames.DataFrame(1, b"").serialize()] * 100_000)


def zero_window():
    """Requests a hundred large responses with a flow control window of 0."""
    session = Session()
    session.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    for number in range(100):
        session.get(2 * number + 1)
    session.flush()
    while observed.get("resets", 0) < 100 and "closed" not in observed and "silent" not in observed:
        session.until(h2.events.StreamReset)
    session.get(201, path=options["small"])
    # Opens the window of this stream.
    session.h2.increment_flow_control_window(65536, 201)
    session.flush()
    session.until(h2.events.StreamEnded)


def settings():
    opening(Session())


def websocket():
    """WebSocket over HTTP/2 (RFC 8441): sends a text and reads its echo."""
    session = Session()
    opening(session)
    observed["offered"] = observed["settings"].get(8)
    head = request([("sec-websocket-version", "13")], method="CONNECT") + [(":protocol", "websocket")]
    session.h2.send_headers(1, sorted(head, key=lambda field: not field[0].startswith(":")))
    session.flush()
    if session.until(h2.events.ResponseReceived, *END) is None or observed.get("status") != 200:
        return
    talk = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
    messages = []
    session.h2.send_data(1, talk.send(TextMessage("café")))
    session.flush()
    for event in session.events():
        note(event)
        if isinstance(event, h2.events.DataReceived):
            session.h2.acknowledge_received_data(event.flow_controlled_length, 1)
            if "code" in observed:
                continue
            talk.receive_data(event.data)
            for message in talk.events():
                if isinstance(message, TextMessage):
                    messages.append(message.data)
                    if len(messages) == 2:
                        session.h2.send_data(1, talk.send(TextMessage("close")))
                elif isinstance(message, CloseConnection):
                    observed["code"] = message.code
                    session.h2.send_data(1, talk.send(message.response()), end_stream=True)
            session.flush()
        if isinstance(event, END):
            break
    observed["messages"] = messages


probe = options["probe"]
if probe in WRONG:
    wrong(WRONG[probe])
else:
    globals()[probe]()
print(json.dumps(observed))
