"""Acts as a person with a browser, without a browser: follows a link through the pages of op.mjs or al.py and back.

    person.py LINK ACCOUNT [deny] [--sign-in TOKEN] [--stop-before-callback]

Follows redirects, forms and meta refreshes with one cookie jar, and sends the Origin of a form's page, as a browser does.
Prints a JSON line: status, URL and text of the last page; with --stop-before-callback the callback URL and the cookies.
"""

import html
import json
import re
import sys
import urllib.parse

import requests
import urllib3

urllib3.disable_warnings()
STEPS_MAX = 30
ONWARD = r'http-equiv="refresh" content="0; url=([^"]*)"'


def text_of(page):
    page = re.sub(r"<(style|title)>.*?</\1>", "", page, flags=re.S)
    return html.unescape(re.sub(r"<[^>]+>", " ", page)).strip()


def form_of(page):
    return re.search(r"<form[^>]*>.*?</form>", page, flags=re.S)


def fields_of(form, account, deny):
    fields = {}
    for tag in re.findall(r"<input[^>]*>", form):
        name = re.search(r'name="([^"]+)"', tag)
        value = re.search(r'value="([^"]*)"', tag)
        if name:
            fields[name[1]] = html.unescape(value[1]) if value else account
    button_id = "deny" if deny else "go"
    for tag in re.findall(r"<button[^>]*>", form):
        name, value = re.search(r'name="([^"]+)"', tag), re.search(r'value="([^"]*)"', tag)
        if f'id="{button_id}"' in tag and name:
            fields[name[1]] = value[1] if value else ""
    return fields


def main(link, account, *options):
    deny, stop = "deny" in options, "--stop-before-callback" in options
    token = options[options.index("--sign-in") + 1] if "--sign-in" in options else None
    browser = requests.Session()
    browser.verify = False
    browser.trust_env = False  # a CA bundle in the environment would take precedence
    answer = browser.get(link, allow_redirects=False)
    for _ in range(STEPS_MAX):
        if answer.is_redirect:
            place = urllib.parse.urljoin(answer.url, answer.headers["location"])
            if stop and urllib.parse.urlparse(place).path.endswith("/oauth/callback"):
                cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in browser.cookies)
                return {"callback": place, "cookies": cookies}
            answer = browser.get(place, allow_redirects=False)
            continue
        form = form_of(answer.text)
        page = urllib.parse.urlparse(answer.url)
        origin = {"Origin": f"{page.scheme}://{page.netloc}"}
        if onward := re.search(ONWARD, answer.text):
            answer = browser.get(urllib.parse.urljoin(answer.url, html.unescape(onward[1])), allow_redirects=False)
            continue
        if form and 'name="token"' in form[0] and token:
            answer = browser.post(answer.url, data={"token": token}, headers=origin, allow_redirects=False)
            token = None
            continue
        if form and 'name="token"' not in form[0]:
            action = re.search(r'<form[^>]*action="([^"]*)"', form[0])
            place = urllib.parse.urljoin(answer.url, html.unescape(action[1])) if action else answer.url
            fields = fields_of(form[0], account, deny)
            answer = browser.post(place, data=fields, headers=origin, allow_redirects=False)
            continue
        break
    return {"status": answer.status_code, "url": answer.url, "text": text_of(answer.text)}


print(json.dumps(main(*sys.argv[1:])))
