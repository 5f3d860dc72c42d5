"""Worlds are made once; tests that write into their folders copy them."""

import pytest

from tests.play import stage


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("play")
    stage.make_worlds(root)
    return root


@pytest.fixture(scope="module")
def served(root):
    """URL and hall of a server with room for everybody."""
    with stage.serving(stage.settings_for(root)) as started:
        yield started


@pytest.fixture
def url(served):
    return served[0]


@pytest.fixture
def client(url):
    with stage.Client(url) as client:
        yield client
