"""The pages as they are built: no warning, no network, and a search that finds the answers."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from sphinx.search.en import SearchEnglish

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'

pytestmark = pytest.mark.slow  # the gallery is computed while the pages are built


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """What the build printed, and the folder of the pages."""
    site = tmp_path_factory.mktemp('site')
    done = subprocess.run(
        [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', DOCS, site],
        capture_output=True,
        text=True,
    )
    return done, site


@pytest.fixture(scope='module')
def site(built):
    return built[1]


def test_pages_build_without_a_warning(built):
    done, site = built
    assert done.returncode == 0, done.stderr
    assert 'Warning' not in done.stderr  # numpydoc warns past Sphinx
    assert 'forward_field' in (site / 'api.html').read_text(encoding='utf-8')


def test_pages_load_nothing_from_a_network(site):
    loaded = re.compile(
        r'<(?:script|img|iframe|source)[^>]*\bsrc="([^"]+)"'
        r'|<link[^>]*rel="stylesheet"[^>]*\bhref="([^"]+)"'
    )
    found = set()
    for page in site.glob('*.html'):
        for pair in loaded.findall(page.read_text(encoding='utf-8')):
            target = unescape(''.join(pair)).partition('?')[0]
            assert '//' not in target, f'{page.name}: {target}'
            assert (site / target).is_file(), f'{page.name}: {target}'
            found.add(Path(target).name)
    assert {'tex-svg.js', 'style.css', 'searchtools.js'} <= found


def test_formulas_are_set_without_a_network(site):
    browser = shutil.which('chromium') or shutil.which('google-chrome')
    if not browser:
        pytest.skip('no browser: only what the pages load was tested')
    flags = [
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--virtual-time-budget=20000',
        '--dump-dom',
    ]
    page = (site / 'methods.html').as_uri()
    done = subprocess.run(
        [browser, *flags, '--proxy-server=127.0.0.1:9', page],
        capture_output=True,
        text=True,
        timeout=300,
    )
    formulas = (DOCS / 'methods.md').read_text(encoding='utf-8').count('$$') // 2
    assert done.stdout.count('<mjx-container') >= formulas > 20
    assert 'data-mjx-error' not in done.stdout  # a formula that MathJax does not understand


def test_every_figure_of_the_gallery_is_its_own(site):
    """Figures of one name would silently show the last of them."""
    page = (site / 'gallery.html').read_text(encoding='utf-8')
    shown = re.findall(r'<img[^>]*src="(_images/[^"]+)"', page)
    made = (DOCS / 'gallery.md').read_text(encoding='utf-8').count('.. plot::')
    assert len(shown) == made >= 8
    assert len({hashlib.sha256((site / name).read_bytes()).digest() for name in shown}) == made


# -- search ------------------------------------------------------------------------------------

QUESTIONS = [
    ('filtered phase', 'faq'),
    ('filtered phase SWI', 'dicom'),
    ('dicom names', 'dicom'),
    ('dcm2niix', 'dicom'),
    ('phase scale radians', 'faq'),
    ('phase codes 4095', 'vendors'),
    ('map inverted GE', 'vendors'),
    ('inverted sign', 'faq'),
    ('which mask', 'brain_mask'),
    ('brain mask fmriprep', 'brain_mask'),
    ('mask not used', 'brain_mask'),
    ('rim edge', 'faq'),
    ('dots streaks', 'faq'),
    ('map all right', 'faq'),
    ('lights report', 'reading'),
    ('which parameters', 'faq'),
    ('0 ppm negative', 'faq'),
    ('reference ppm', 'conventions'),
    ('differ another program', 'faq'),
    ('field map already', 'faq'),
    ('given field', 'usage'),
    ('one subject cluster', 'faq'),
    ('slurm', 'hpc'),
    ('ROI values', 'faq'),
    ('template space', 'faq'),
    ('lesions', 'faq'),
    ('chi separation', 'faq'),
]
"""What people type, and the page that must be among the first."""

FIRST = 6
"""How far down a page may stand."""


@pytest.fixture(scope='module')
def index(site):
    """The index that the pages' search reads."""
    text = (site / 'searchindex.js').read_text(encoding='utf-8')
    return json.loads(text.removeprefix('Search.setIndex(').removesuffix(')'))


def search(index, query):
    """Pages with every word of the query, best first: the rules of Sphinx's searchtools.js.

    A word in a heading counts 15, elsewhere 5, part of a word 7 and 2; a page has the score of
    its best word, numbers are passed over, and pages of one score follow the alphabet.
    """
    language = SearchEnglish({})
    words = [
        language.stem(word.lower())
        for word in query.split()
        if word.lower() not in language.stopwords and not word.isdigit()
    ]
    assert words, query
    pages = []
    for word in words:
        scores = {}
        for terms, whole, part in ((index['terms'], 5, 2), (index['titleterms'], 15, 7)):
            for term, found in terms.items():
                if term == word:
                    score = whole
                elif len(word) > 2 and word in term:
                    score = part
                else:
                    continue
                for page in found if isinstance(found, list) else [found]:
                    scores[page] = max(scores.get(page, 0), score)
        pages.append(scores)
    common = set.intersection(*map(set, pages))
    order = sorted(common, key=lambda p: (-max(s[p] for s in pages), index['titles'][p]))
    return [index['docnames'][page] for page in order]


@pytest.mark.parametrize('query, page', QUESTIONS, ids=lambda value: value.replace(' ', '_'))
def test_search_finds_the_answer(index, query, page):
    assert page in search(index, query)[:FIRST]


def test_search_finds_nothing_that_is_not_there(index):
    assert search(index, 'zeppelin') == []
