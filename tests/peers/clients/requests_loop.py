"""Calls URL with requests.Session for SECONDS, PAUSE_MS apart; the proxy comes only from the environment."""

import sys

import requests

from loop import run

session = requests.Session()


def call(url):
    response = session.get(url, timeout=30)
    return response.status_code, response.text


run(call, *sys.argv[1:])
