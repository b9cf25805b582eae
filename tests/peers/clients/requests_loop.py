"""Calls URL with requests.Session for SECONDS, PAUSE_MS apart; the proxy comes from the environment alone."""

import sys

import requests

from loop import run

session = requests.Session()


def call(url):
    response = session.get(url, timeout=30)
    return response.status_code, response.text


run(call, *sys.argv[1:])
