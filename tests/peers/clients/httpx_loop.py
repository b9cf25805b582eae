"""Calls URL with httpx.Client for SECONDS, PAUSE_MS apart; the proxy comes only from the environment."""

import sys

import httpx

from loop import run

client = httpx.Client(timeout=30)


def call(url):
    response = client.get(url)
    return response.status_code, response.text


run(call, *sys.argv[1:])
