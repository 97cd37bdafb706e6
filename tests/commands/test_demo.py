"""The page of `demo`: what is behind it, what it refuses, the Space, and the page itself in a browser."""

import contextlib
import importlib.util
import os
import runpy
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from importlib import metadata
from types import SimpleNamespace
from urllib.parse import urlparse

import pytest
import yaml

from gpt2_hf.__main__ import main
from gpt2_hf.commands import demo, space
from gpt2_hf.commands.demo import colored, describe, load_demo_model, read_all, write_all
from gpt2_hf.commands.surprisal import CLASSES, Token

from ..browser import browser, requested_addresses, require_browser

PROMPT = "The assert statement"
READ = "The assert statement is a statement. Zebra!"


@pytest.fixture
def with_gradio(monkeypatch):
    """As if gradio were installed, for what comes before it is imported."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: name == "gradio" or find(name, *more))


@pytest.fixture(scope="module")
def model(finished_run):
    return load_demo_model(str(finished_run / "best_model"))


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    """Exit code 2, before a model is loaded."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["demo", "--model_path", "./nowhere"]) == 2
    assert capsys.readouterr().err == "error: demo needs gradio: pip install 'gpt2_hf[demo]'\n"


def test_bad_demo_commands_are_one_line(with_gradio, tmp_path, capsys):
    """A model that is not there, a port that is taken, a folder with something in it, options without effect."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        for options, message in (
            (["--model_path", str(tmp_path / "nowhere"), "--port", "1025"], "--model_path: "),
            (["--port", port], f"--host 127.0.0.1 --port {port}: Address already in use; give another --port"),
            (["--port", "70000"], "--port must be at most 65,535, got 70,000"),
            (["--host", "nowhere.invalid"], "--host nowhere.invalid"),
            (["--model_path", "a", "b", "c"], "--model_path takes one or two models, got 3"),
            (["--space_dir", str(tmp_path / "full")], f"--space_dir: {tmp_path / 'full'} exists and is not empty"),
            (["--space_dir", str(tmp_path / "x"), "--port", "80"], "--port has no effect with --space_dir"),
            (["--space_dir", str(tmp_path / "x"), "--model_path", str(tmp_path / "nowhere")], "--model_path: "),
        ):
            assert main(["demo", *options]) == 2
            err = capsys.readouterr().err
            assert message in err and err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_two_models_write_beside_each_other(model):
    """Four boxes a model; each sample grows from the prompt, and the first model's stay while the second writes."""
    steps = list(write_all([model, model], PROMPT, 6, 0.9, 0, 0.95, 3, 2))
    assert all(len(boxes) == 8 for boxes in steps)
    last = steps[-1]
    assert last[:2] == last[4:6] and last[2:4] == last[6:] == ["", ""]
    assert all(text.startswith(PROMPT) and len(text) > len(PROMPT) for text in last[:2])
    assert steps[0][4:6] == ["", ""] and len(steps[0][0]) <= len(last[0])


def test_a_text_is_read_by_each_model(model):
    """A line with the mean, and for each token its class; nothing predicts the first."""
    summary, tokens, _, kept = read_all([model], PROMPT)
    assert f"{len(kept)} tokens" in summary and "nats per token on average" in summary
    assert "".join(text for text, _ in tokens) == PROMPT and tokens[0][1] is None
    assert {name for _, name in tokens[1:]} <= {name for name, _ in CLASSES}
    assert "no token to predict" in read_all([model], "")[0]


def test_a_token_is_described_with_what_was_expected():
    """Blanks and the signs of Markdown's tables stay visible."""
    text = describe(Token(" x", 2.5, [(" |", 0.5), ("\n", 0.25)]))
    assert text.startswith("`·x`: 2.50 nats") and "| `·∣` | 50.00% |" in text and "| `\\n` | 25.00% |" in text
    assert "nothing predicts it" in describe(Token("The", None, []))
    assert colored([Token("", 9.0, [])]) == [("‹›", "8 and over")]


def test_the_space_is_whole(with_gradio, finished_run, tmp_path, capsys, monkeypatch):
    """A header for the hub, versions that are on PyPI, and an app that loads its own model by a relative path."""
    versions = metadata.version
    monkeypatch.setattr(space.metadata, "version", lambda name: "6.0.0" if name == "gradio" else versions(name))
    target = tmp_path / "my space"
    assert main(["demo", "--model_path", str(finished_run / "best_model"), "--space_dir", str(target)]) == 0
    written, publish = capsys.readouterr().out.splitlines()[-2:]
    assert shlex.split(written.partition("try it: ")[2])[:2] == ["cd", str(target)]
    assert str(target) in shlex.split(publish)
    header = yaml.safe_load((target / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert header["sdk"] == "gradio" and header["sdk_version"] == "6.0.0" and header["app_file"] == "app.py"
    requirements = (target / "requirements.txt").read_text().splitlines()
    names = {line.partition("==")[0] for line in requirements}
    assert (
        {"torch", "transformers"} <= names and "pytest" not in names and not any("+" in line for line in requirements)
    )
    assert (target / "gpt2_hf" / "commands" / "demo.py").is_file() and not list(target.rglob("__pycache__"))
    served = []
    monkeypatch.setattr(demo, "serve", served.append)
    monkeypatch.chdir(target)
    runpy.run_path("app.py", run_name="__main__")
    ((path,),) = served
    assert load_demo_model(path).model.config.n_positions == 32


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY", None])
def test_the_page_is_not_behind_a_proxy(monkeypatch, name):
    """Gradio asks its own server; what the environment excepts already stays so."""
    for one in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(one, "")
    if name is not None:
        monkeypatch.setenv(name, "example.org")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    passed_by = []
    hosts = ("localhost", "127.0.0.1", "page.internal", "a.example.org", "example.com")
    page = SimpleNamespace(launch=lambda **options: passed_by.extend(map(urllib.request.proxy_bypass, hosts)))
    monkeypatch.setattr(demo, "build_page", lambda models: page)
    demo.serve([], host="page.internal")
    assert list(map(bool, passed_by)) == [True, True, True, name is not None, False]


@pytest.fixture
def page(finished_run):
    """The address of the page, with two models."""
    require_browser()
    pytest.importorskip("gradio", reason="the page needs the extra [demo]")
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    models = [str(finished_run / name) for name in ("best_model", "checkpoint-10")]
    command = [sys.executable, "-m", "gpt2_hf", "demo", "--model_path", *models, "--port", str(port)]
    proxied = {**os.environ, "HTTP_PROXY": "http://127.0.0.1:9"}  # no server of the page is behind it
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=proxied)
    address = f"http://127.0.0.1:{port}/"
    try:
        deadline = time.monotonic() + 120
        while True:
            assert server.poll() is None and time.monotonic() < deadline
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address, timeout=10).close()
                break
            time.sleep(0.3)
        yield address
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.slow
def test_the_page_in_a_browser(page, tmp_path):
    """Type, press, read the streamed text and the colours, click on a token; nothing comes from another host."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    with browser(tmp_path / "profile") as driver:
        wait = WebDriverWait(driver, 60)

        def element(selector):
            return wait.until(
                lambda d: next((e for e in d.find_elements(By.CSS_SELECTOR, selector) if e.is_displayed()), None)
            )

        driver.get(page)
        element("#prompt textarea").send_keys(PROMPT)
        element("#write").click()
        for m in (0, 1):
            box = element(f"#text-{m}-0 textarea")
            wait.until(lambda d, box=box: len(box.get_property("value")) > len(PROMPT))
            assert box.get_property("value").startswith(PROMPT)
        save(driver, "write.png")

        next(tab for tab in driver.find_elements(By.CSS_SELECTOR, "button[role=tab]") if tab.text == "Read").click()
        element("#text textarea").send_keys(READ)
        element("#read").click()
        wait.until(lambda d: "nats per token" in element("#summary-0").text)
        tokens = driver.find_elements(By.CSS_SELECTOR, "#colors-0 .textfield .token")
        assert (
            "".join(token.find_element(By.CLASS_NAME, "text").get_property("textContent") for token in tokens) == READ
        )
        colors = {token.value_of_css_property("background-color") for token in tokens}
        assert len(colors) >= 3
        tokens[-1].click()
        wait.until(lambda d: "nats" in element("#expected-0").text)
        assert "probability" in element("#expected-0").text
        save(driver, "read.png")
        hosts = {urlparse(address).netloc for address in requested_addresses(driver)}
        assert hosts == {urlparse(page).netloc}


def save(driver, name):
    """A picture of the page, where GPT2_HF_SCREENSHOTS names a folder for it."""
    if "GPT2_HF_SCREENSHOTS" in os.environ:
        driver.save_screenshot(os.path.join(os.environ["GPT2_HF_SCREENSHOTS"], name))
