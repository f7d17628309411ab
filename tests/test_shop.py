"The shop: the same goods, customers and orders everywhere, real pages, quick resets, and nothing left behind."

import http.client
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from dreamgym.suites import shop
from dreamgym.suites.shop import (
    SHOP_NAME,
    TODAY,
    Dice,
    ShopServer,
    ShopSite,
    content_digest,
    shop_customers,
    shop_database,
    shop_missing,
    shop_orders,
    shop_products,
    shop_reviews,
    shop_wishes,
)
from dreamgym.trajectories import DreamgymError

# What the word lists and the seed make; expected answers of tasks rest on it. Another edition has another one.
CONTENT = "653411ec9ae3ee88ff2f1f9cefa0080315bb362fbed14820bc1b53b0a10eb4ba"
EMMA, NOAH = (customer.email for customer in shop_customers()[:2])
needs_shop = pytest.mark.skipif(bool(shop_missing()), reason="the extra webarena is not installed")


class Visitor:
    "A browser without a screen: it keeps cookies, sends the token of a form, and does not follow redirects."

    def __init__(self, server, customer=""):
        self.address = server.start()
        self.cookies = {"sessionid": server.session(customer)} if customer else {}

    def __call__(self, path, form=None, **headers):
        "Status, address of a redirect, page."
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=60)
        headers = {"Cookie": "; ".join(f"{name}={text}" for name, text in self.cookies.items()), **headers}
        body = None
        if form is not None:
            body = urlencode({**form, "csrfmiddlewaretoken": self.cookies.get("csrftoken", "")})
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        with closing(connection):
            connection.request("POST" if body is not None else "GET", path, body, headers)
            answer = connection.getresponse()
            for cookie in answer.headers.get_all("Set-Cookie") or []:
                name, _, text = cookie.split(";")[0].partition("=")
                self.cookies[name] = text
            return answer.status, answer.headers.get("Location", ""), answer.read().decode()


def rows(database, question, *values):
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(question, values).fetchall()


def within(seconds, check):
    "Wait until something holds."
    end = time.monotonic() + seconds
    while not check() and time.monotonic() < end:
        time.sleep(0.05)
    return check()


def gone(process):
    "Is a process dead, or a zombie that nobody waits for?"
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return not Path(f"/proc/{process}").exists()


def refused(port):
    "Does nobody listen on a port?"
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return True
    return False


@pytest.fixture(scope="session")
def shop_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("shop-cache")


@pytest.fixture
def cache(shop_cache, monkeypatch):
    "A cache of the tests' own, in which the shop is built once."
    monkeypatch.setenv("DREAMGYM_CACHE", str(shop_cache))
    return shop_cache


@pytest.fixture(scope="session")
def shared_server():
    server = ShopServer()
    yield server
    server.close()


@pytest.fixture
def server(cache, shared_server):
    "A running shop as it is at the start of an episode."
    shared_server.reset()
    return shared_server


def order_of(server, customer, status):
    "The number of an order of a customer."
    question = """SELECT number FROM order_order o JOIN auth_user u ON u.id = o.user_id
        WHERE u.email = ? AND o.status = ? ORDER BY number DESC"""
    return rows(server.database, question, customer, status)[0][0]


# ---------------------------------------------------------------- what the seed makes


def test_the_catalogue_is_large_and_believable():
    products = shop_products()
    assert len(products) >= 300 and len({product.category for product in products}) >= 15
    assert len({product.title for product in products}) == len({product.upc for product in products}) == len(products)
    assert {len(product.title.split()) for product in products} <= {3, 4}, "lists cut titles after four words"
    by_category = {}
    for product in products:
        by_category.setdefault(product.category, []).append(product)
        assert 100 <= product.cents <= 50_000 and product.stock > 0 and product.added < TODAY
        assert product.colour in product.description and product.title.startswith(product.brand)
    for goods in by_category.values():
        assert len({product.cents for product in goods}) == len(goods) >= 12, "one is the cheapest"
        assert len({product.department for product in goods}) == 1


def test_customers_have_years_of_orders():
    orders, customers = shop_orders(), shop_customers()
    assert len(customers) >= 6 and len({customer.email for customer in customers}) == len(customers)
    assert [order.number for order in orders] == sorted({order.number for order in orders})
    assert sorted(order.date for order in orders) == [order.date for order in orders]
    for customer in customers:
        mine = [order for order in orders if order.customer == customer.email]
        assert 20 <= len(mine) <= 40 and {order.date.year for order in mine} >= {2024, 2025, 2026}
        statuses = Counter(order.status for order in mine)
        assert statuses["Pending"] >= 2 and statuses["Complete"] >= 10
        assert all(order.address in customer.addresses and order.date < TODAY for order in mine)
        assert sum(len(order.lines) > 1 for order in mine) >= 8 and all(len(order.lines) <= 5 for order in mine)
        assert all(len({place for place, _ in order.lines}) == len(order.lines) for order in mine)
        assert all(2 <= len(places) <= 6 for email, _, places in shop_wishes() if email == customer.email)
    assert {order.status for order in orders} == {"Pending", "Shipped", "Complete", "Cancelled"}


def test_reviews_fit_their_stars():
    reviews, products = shop_reviews(), shop_products()
    assert len(reviews) > 800 and {review.score for review in reviews} == {1, 2, 3, 4, 5}
    assert any(review.customer for review in reviews) and len({review.text for review in reviews}) > 600
    assert all(products[review.product].added <= review.date < TODAY for review in reviews)
    written = [(review.product, review.customer) for review in reviews if review.customer]
    assert len(written) == len(set(written)), "a customer reviews a product once"


def test_the_seed_makes_the_same_shop_everywhere():
    made = [shop_products(), shop_customers(), shop_orders(), shop_reviews(), shop_wishes()]
    found = sha256(json.dumps(made, default=str).encode()).hexdigest()
    assert found == CONTENT, "a change of the shop changes what is true in it: raise _EDITION and this digest together"


def test_dice_need_only_the_numbers_that_python_promises():
    dice, other = Dice(5), Dice(5)
    assert [dice.whole(1, 6) for _ in range(9)] == [1 + int(other.random() * 6) for _ in range(9)]
    assert sorted(Dice(1).some("abc", 9)) == ["a", "b", "c"] and Dice(1).some("abc", 0) == []


def test_the_module_needs_neither_django_nor_a_browser():
    program = ("import sys, dreamgym.suites.shop as shop\nshop.shop_orders()\n"
               "assert not {'django', 'oscar', 'whoosh', 'playwright', 'torch'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_oscar_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(shop, "find_spec", lambda name: None)
    assert "dreamgym[webarena]" in shop_missing()[0]
    with pytest.raises(DreamgymError, match="oscar"):
        shop_database()


# ---------------------------------------------------------------- the database


@needs_shop
def test_the_database_holds_what_the_seed_makes(cache):
    database, products = shop_database(), shop_products()
    stored = rows(database, """SELECT p.title, cast(round(100 * s.price) AS int), s.num_in_stock, c.name
        FROM catalogue_product p JOIN partner_stockrecord s ON s.product_id = p.id
        JOIN catalogue_productcategory pc ON pc.product_id = p.id JOIN catalogue_category c ON c.id = pc.category_id""")
    assert set(stored) == {(p.title, p.cents, p.stock, p.category) for p in products} and len(stored) == len(products)
    found = rows(database, """SELECT o.number, u.email, o.status, substr(o.date_placed, 1, 16),
        cast(round(100 * o.total_incl_tax) AS int), sum(l.quantity), cast(round(100 * sum(l.line_price_incl_tax)) AS int)
        FROM order_order o JOIN auth_user u ON u.id = o.user_id JOIN order_line l ON l.order_id = o.id GROUP BY o.id""")
    wanted = set()
    for order in shop_orders():
        total = sum(products[place].cents * pieces for place, pieces in order.lines)
        wanted.add((order.number, order.customer, order.status, f"{order.date:%Y-%m-%d %H:%M}", total,
                    sum(pieces for _, pieces in order.lines), total))
    assert set(found) == wanted and len(found) == len(wanted)


@needs_shop
def test_ratings_are_the_means_of_the_stars(cache):
    means = rows(shop_database(), """SELECT p.rating, avg(r.score) FROM catalogue_product p
        LEFT JOIN reviews_productreview r ON r.product_id = p.id GROUP BY p.id""")
    assert all(rating == mean or abs(rating - mean) < 1e-9 for rating, mean in means)
    assert {int(rating) for rating, _ in means} == {1, 2, 3, 4, 5}, "all have one: a list sorted by stars has no holes"


@needs_shop
@pytest.mark.slow
def test_two_processes_at_once_replace_a_damaged_shop_by_one_with_the_same_rows(cache, tmp_path):
    "Another cache with a shop that was cut short, another order of Python's sets, two that want it at the same moment."
    database = shop_database()
    with pytest.raises(sqlite3.OperationalError), closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as found:
        found.execute("DELETE FROM order_order")
    damaged = shutil.copytree(database.parent, tmp_path / "shop" / database.parent.name) / database.name
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-5000])
    program = "from dreamgym.suites.shop import *; print(content_digest(shop_database()))"
    begin = time.perf_counter()
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True,
                             env=os.environ | {"DREAMGYM_CACHE": str(tmp_path), "PYTHONHASHSEED": number}) for number in "12"]
    said = [process.communicate()[0].strip() for process in both]
    print(f"built in {time.perf_counter() - begin:.1f} s")
    assert said == [content_digest(database)] * 2
    kept = [path.name for path in (tmp_path / "shop").iterdir() if path.is_dir()]
    assert len(kept) == 1 and "unfinished" not in kept[0]


@needs_shop
def test_a_build_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("DREAMGYM_CACHE", str(tmp_path))
    monkeypatch.setattr(shop, "_child", broken_child)
    with pytest.raises(DreamgymError, match="no shop today"):
        shop_database()
    assert [path for path in (tmp_path / "shop").iterdir() if path.is_dir()] == []


def broken_child(*words, **options):
    "A process that ends at once."
    return subprocess.Popen([sys.executable, "-c", "raise SystemExit('no shop today')"], **options)


# ---------------------------------------------------------------- pages


@needs_shop
def test_pages_are_those_of_a_shop_and_need_no_other_host(server):
    visitor, emma = Visitor(server), Visitor(server, EMMA)
    product = re.findall(r'href="(/catalogue/[a-z][^"/]*_\d+/)"', visitor("/catalogue/")[2])[0]
    public = ["/catalogue/", "/catalogue/category/garden_1/", product, "/search/?q=lamp", "/basket/", "/accounts/login/",
              "/offers/"]
    private = ["/accounts/", "/accounts/orders/", "/accounts/profile/", "/accounts/addresses/", "/accounts/wishlists/",
               "/accounts/emails/", "/accounts/alerts/", "/accounts/notifications/inbox/"]
    for visit, paths in ((visitor, public), (emma, public[:6] + private)):
        for path in paths:
            begin = time.perf_counter()
            status, target, page = visit(path)
            print(f"{path}: {1000 * (time.perf_counter() - begin):.0f} ms")
            assert status in (200, 302) and (status == 200 or target == "/accounts/profile/"), (path, status, target)
            assert not re.findall(r'(?:src|href|action)\s*=\s*["\'](?:https?:)?//', page), path
            assert status == 302 or (SHOP_NAME in page and "language" not in page.lower())
    for path in set(re.findall(r'(?:src|href)="(/static/[^"]+)"', visitor(product)[2] + emma("/accounts/orders/")[2])):
        assert visitor_bytes(server, path), path


def visitor_bytes(server, path):
    connection = http.client.HTTPConnection(urlsplit(server.start()).netloc, timeout=60)
    with closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read() if answer.status == 200 else b""


@needs_shop
def test_nothing_but_its_files_is_served(server):
    for path in ("/static/../shop.sqlite3", "/static/..%2f..%2fshop.sqlite3", "/static//etc/passwd", "/shop.sqlite3",
                 "/static/oscar/nothing.css", "/nowhere/"):
        assert Visitor(server)(path)[0] == 404, path


@needs_shop
def test_it_listens_on_loopback_only_and_answers_to_no_other_name(server):
    assert Visitor(server)("/catalogue/", Host="shop.example")[0] == 400
    listening = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        place, state = line.split()[1], line.split()[3]
        if state == "0A" and int(place.split(":")[1], 16) == server.port:
            listening.append(place.split(":")[0])
    assert listening == ["0100007F"]


@needs_shop
def test_lists_can_be_searched_sorted_and_turned_over(server):
    def listed(path):
        page = Visitor(server)(path)[2]
        prices = [float(price) for price in re.findall(r'price_color">\s*\$([\d.,]+)', page)]
        return prices, re.findall(r'<h3[^>]*>\s*<a [^>]*title="([^"]+)"', page)

    products = shop_products()
    prices, titles = listed("/catalogue/?sort_by=price-asc")
    assert prices == sorted(prices) and len(prices) == 20 and round(100 * prices[0]) == min(p.cents for p in products)
    prices, titles = listed("/catalogue/?sort_by=price-desc&page=2")
    assert prices == sorted(prices, reverse=True) and len(prices) == 20
    assert round(100 * prices[-1]) == sorted((p.cents for p in products), reverse=True)[39]
    _, titles = listed("/search/?q=lamp")
    assert {*titles} == {p.title for p in products if "lamp" in p.title.split()} and titles
    (number,) = rows(server.database, "SELECT id FROM catalogue_category WHERE name = 'Garden tools'")[0]
    prices, titles = listed(f"/catalogue/category/garden/garden-tools_{number}/?sort_by=price-asc")
    assert titles == [p.title for p in sorted(products, key=lambda p: p.cents) if p.category == "Garden tools"]
    scores = dict(rows(server.database, "SELECT title, rating FROM catalogue_product"))
    _, titles = listed("/catalogue/?sort_by=rating")
    assert [int(scores[title]) for title in titles] == [5] * 20


@needs_shop
def test_stars_are_told_in_words(server):
    (title, number, rating), *_ = rows(server.database, "SELECT title, id, rating FROM catalogue_product WHERE rating = 4")
    page = Visitor(server)(f"/catalogue/x_{number}/")
    page = Visitor(server)(page[1])[2] if page[1] else page[2]
    words = r'star-rating Four">\s*(<i [^>]*></i>\s*){5}<span class="sr-only">4 of 5 stars</span>'
    assert title in page and re.search(words, page), "after the pictures: styles count from the first of them"
    assert page.count('class="sr-only">') >= 1 + page.count('<article class="review">') >= 2, "every review tells its own"


# ---------------------------------------------------------------- what customers do


@needs_shop
def test_every_customer_can_log_in_with_the_password(server):
    for customer in shop_customers():
        visitor = Visitor(server)
        assert "login-username" in visitor("/accounts/login/")[2]
        form = {"login-username": customer.email, "login-password": customer.password, "login_submit": "1"}
        assert visitor("/accounts/login/", {**form, "login-password": "guess"})[0] == 200
        assert visitor("/accounts/login/", form)[0] == 302
        assert customer.email in visitor("/accounts/profile/")[2]
        page = visitor("/accounts/addresses/")[2]
        assert all(address.line in page for address in customer.addresses)


@needs_shop
def test_orders_are_those_of_the_customer(server):
    emma = Visitor(server, EMMA)
    mine = [order for order in shop_orders() if order.customer == EMMA]
    shown = re.findall(r"/accounts/orders/(\d+)/", emma("/accounts/orders/")[2] + emma("/accounts/orders/?page=2")[2])
    assert list(dict.fromkeys(shown)) == [order.number for order in reversed(mine)]
    spring = [order for order in mine if "2025-01" <= f"{order.date:%Y-%m}" <= "2025-06"]
    page = emma("/accounts/orders/?date_from=2025-01-01&date_to=2025-06-30&order_number=")[2]
    assert {*re.findall(r"/accounts/orders/(\d+)/", page)} == {order.number for order in spring} and spring
    order, products = mine[-1], shop_products()
    page = emma(f"/accounts/orders/{order.number}/")[2]
    assert order.status in page and all(products[place].title in page for place, _ in order.lines)
    other = next(order for order in shop_orders() if order.customer == NOAH)
    assert emma(f"/accounts/orders/{other.number}/")[0] == 404


@needs_shop
def test_an_order_can_be_placed_and_is_undone_by_a_reset(server):
    emma, before = Visitor(server, EMMA), content_digest(server.database)
    (number,) = rows(server.database, "SELECT product_id FROM partner_stockrecord")[0]
    emma("/catalogue/")
    assert emma(f"/basket/add/{number}/", {"quantity": "2"})[0] == 302
    (address,) = rows(server.database, """SELECT a.id FROM address_useraddress a JOIN auth_user u ON u.id = a.user_id
        WHERE u.email = ? AND a.is_default_for_shipping""", EMMA)[0]
    assert emma("/checkout/")[0] == 302 and "Ship to this address" in emma("/checkout/shipping-address/")[2]
    target = emma("/checkout/shipping-address/", {"action": "ship_to", "address_id": address})[1]
    for _ in range(5):
        status, further, page = emma(target)
        target = further or target
        if status == 200:
            break
    assert target == "/checkout/payment-details/" and 'href="/checkout/preview/"' in page and "github" not in page
    assert "place-order" in emma("/checkout/preview/")[2]
    assert emma("/checkout/preview/", {"action": "place_order"})[1] == "/checkout/thank-you/"
    assert emma("/checkout/thank-you/")[0] == 200
    (placed, status, date, pieces) = rows(server.database, """SELECT o.number, o.status, o.date_placed, l.quantity
        FROM order_order o JOIN order_line l ON l.order_id = o.id ORDER BY o.id DESC""")[0]
    assert (status, pieces, date[:10]) == ("Pending", 2, f"{TODAY:%Y-%m-%d}"), "today is always the same day"
    assert placed not in {order.number for order in shop_orders()}
    assert content_digest(server.database) != before
    server.reset()
    assert content_digest(server.database) == before == content_digest(shop_database())
    assert emma(f"/accounts/orders/{placed}/")[0] == 302, "nobody is logged in any more"
    assert Visitor(server, EMMA)(f"/accounts/orders/{placed}/")[0] == 404


@needs_shop
def test_only_a_pending_order_of_ones_own_can_be_cancelled(server):
    emma, mine = Visitor(server, EMMA), order_of(server, EMMA, "Pending")
    done, other = order_of(server, EMMA, "Complete"), order_of(server, NOAH, "Pending")
    path = f"/accounts/orders/{mine}/cancel/"
    assert f'action="{path}"' in emma(f"/accounts/orders/{mine}/")[2]
    assert "Cancel this order" not in emma(f"/accounts/orders/{done}/")[2]
    assert emma(path)[0] == 405 and Visitor(server)(path, {})[0] == 403
    assert emma(path, {})[:2] == (302, f"/accounts/orders/{mine}/")
    assert "has been cancelled" in emma(f"/accounts/orders/{mine}/")[2]
    assert emma(f"/accounts/orders/{other}/cancel/", {})[0] == 404
    assert emma(f"/accounts/orders/{done}/cancel/", {})[0] == emma(path, {})[0] == 302
    question = "SELECT status FROM order_order WHERE number = ?"
    assert [rows(server.database, question, number) for number in (mine, done, other)] == [
        [("Cancelled",)], [("Complete",)], [("Pending",)]]
    server.reset()
    assert rows(server.database, question, mine) == [("Pending",)]


@needs_shop
def test_reviews_wishes_and_addresses_can_be_written(server):
    emma = Visitor(server, EMMA)
    (number, slug) = rows(server.database, "SELECT id, slug FROM catalogue_product WHERE rating < 4")[0]
    emma("/catalogue/")
    form = {"title": "Solid", "score": "4", "body": "Does what it should."}
    assert emma(f"/catalogue/{slug}_{number}/reviews/add/", form)[0] == 302
    assert "Does what it should." in emma(f"/catalogue/{slug}_{number}/reviews/")[2]
    ((rating,),) = rows(server.database, "SELECT rating FROM catalogue_product WHERE id = ?", number)
    ((before,),) = rows(shop_database(), "SELECT rating FROM catalogue_product WHERE id = ?", number)
    assert before < rating < 4
    (key, wishes) = rows(server.database, """SELECT w.key, w.id FROM wishlists_wishlist w JOIN auth_user u ON u.id = w.owner_id
        WHERE u.email = ?""", EMMA)[0]
    assert emma(f"/accounts/wishlists/{key}/add/{number}/", {})[0] == 302
    assert (number,) in rows(server.database, "SELECT product_id FROM wishlists_line WHERE wishlist_id = ?", wishes)
    form = dict(first_name="Emma", last_name="Lopez", line1="7 Quay Street", line4="Austin", state="Texas", postcode="78701",
                country="US", title="", line2="", line3="", phone_number="", notes="")
    assert emma("/accounts/addresses/add/", form)[0] == 302
    assert "7 Quay Street" in emma("/accounts/addresses/")[2]


# ---------------------------------------------------------------- resets, deaths and other troubles


@needs_shop
def test_resets_while_pages_are_being_asked_for(server):
    "Pages are whole before or after a reset, never in between."
    stop, seen = threading.Event(), Counter()

    def wander():
        (number,) = rows(shop_database(), "SELECT id FROM catalogue_product")[0]
        visitor = Visitor(server)
        visitor("/catalogue/")
        while not stop.is_set():
            seen[visitor("/basket/")[0]] += 1
            seen[visitor(f"/basket/add/{number}/", {"quantity": "1"})[0]] += 1

    walkers = [threading.Thread(target=wander) for _ in range(3)]
    for walker in walkers:
        walker.start()
    times = []
    for _ in range(15):
        begin = time.perf_counter()
        server.reset()
        times.append(time.perf_counter() - begin)
        time.sleep(0.02)
    stop.set()
    for walker in walkers:
        walker.join(60)
    server.reset()
    print(f"resets took {1000 * min(times):.0f} to {1000 * max(times):.0f} ms, pages {dict(seen)}")
    assert set(seen) <= {200, 302} and seen[302] and content_digest(server.database) == content_digest(shop_database())
    assert server.starts == 1


@needs_shop
@pytest.mark.parametrize("trouble", ["deleted", "locked", "garbled", "journal"])
def test_a_reset_mends_the_database(server, trouble):
    held = None
    if trouble == "deleted":
        server.database.unlink()
        assert Visitor(server)("/catalogue/")[0] == 500
    elif trouble == "locked":
        held = sqlite3.connect(server.database, isolation_level=None)
        held.execute("BEGIN EXCLUSIVE")
    elif trouble == "garbled":
        server.database.write_bytes(b"not a database")
    else:
        server.database.with_name(server.database.name + "-journal").write_bytes(b"\xd9\xd5\x05\xf9 a journal of another life")
    server.reset()
    assert Visitor(server, EMMA)("/accounts/orders/")[0] == 200
    server.reset()
    assert content_digest(server.database) == content_digest(shop_database())
    if held:
        held.close()


@needs_shop
def test_a_server_that_was_killed_is_started_again(cache):
    with ShopServer() as server:
        site, first = Visitor(server, EMMA), server.start()
        order, starts = order_of(server, EMMA, "Pending"), server.starts
        site(f"/accounts/orders/{order}/")
        site(f"/accounts/orders/{order}/cancel/", {})
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(30)
        with pytest.raises(OSError):
            site("/catalogue/")
        assert server.start() == first and server.starts == starts + 1, "at the address that browsers know"
        assert "Cancelled" in Visitor(server, EMMA)(f"/accounts/orders/{order}/")[2], "what happened has happened"
        os.kill(server.process.pid, signal.SIGKILL)
        server.reset()
        assert content_digest(server.database) == content_digest(shop_database())


@needs_shop
def test_a_server_that_hangs_is_replaced(cache, monkeypatch):
    with ShopServer() as server:
        server.start()
        monkeypatch.setattr(shop, "_PATIENCE", 2.0)
        os.kill(server.process.pid, signal.SIGSTOP)
        server.reset()
        assert server.starts == 2 and Visitor(server)("/catalogue/")[0] == 200
        os.kill(server.process.pid, signal.SIGSTOP)
        folder, process = server.folder, server.process.pid
    assert gone(process) and not folder.exists()


@needs_shop
def test_the_folder_of_a_server_may_vanish(cache):
    with ShopServer() as server:
        server.start()
        shutil.rmtree(server.folder)
        server.reset()
        assert Visitor(server, EMMA)("/accounts/orders/")[0] == 200 and Visitor(server)("/search/?q=lamp")[0] == 200


@needs_shop
def test_two_shops_share_nothing_and_a_taken_port_is_passed_over(cache):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with ShopServer(port) as one, ShopServer(port) as two:
            assert len({one.start(), two.start(), f"http://127.0.0.1:{port}"}) == 3
            assert one.folder != two.folder
            order = order_of(one, EMMA, "Pending")
            visitor = Visitor(one, EMMA)
            visitor(f"/accounts/orders/{order}/")
            visitor(f"/accounts/orders/{order}/cancel/", {})
            assert order_of(two, EMMA, "Pending") == order != order_of(one, EMMA, "Pending")
    with ShopServer() as server:
        server.start()
        folder, process = server.folder, server.process.pid
    server.close()
    assert gone(process) and not folder.exists()


@needs_shop
def test_a_start_that_fails_says_what_the_server_said(cache, monkeypatch):
    shop_database()
    monkeypatch.setattr(shop, "_child", broken_child)
    server = ShopServer()
    with pytest.raises(shop.SiteFailed, match="no shop today"):
        server.start()
    assert server.folder is None and server.process is None


OWNER = """
import json, sys, time
from dreamgym.suites.shop import ShopServer
server = ShopServer()
server.start()
print(json.dumps([server.port, str(server.folder), server.process.pid]), flush=True)
{end}
"""


@needs_shop
@pytest.mark.parametrize("end", ["killed", "killed with its children", "exit", "error"])
def test_nothing_is_left_when_the_owner_ends(cache, end):
    tail = {"exit": "", "error": "raise ValueError"}.get(end, "time.sleep(600)")
    owner = subprocess.Popen([sys.executable, "-c", OWNER.replace("{end}", tail)], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, text=True, start_new_session=True)
    port, folder, process = json.loads(owner.stdout.readline())
    if end == "killed":
        os.kill(owner.pid, signal.SIGKILL)
    elif end == "killed with its children":
        os.killpg(owner.pid, signal.SIGKILL)
    owner.wait(120)
    assert within(120, lambda: gone(process)) and within(120, lambda: not Path(folder).exists())
    assert within(120, lambda: refused(port))


@needs_shop
def test_serving_for_people_ends_with_an_interrupt(cache):
    program = ("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # tests in the background ignore it
               "from dreamgym.suites.shop import serve_shop; serve_shop(0)")
    command = [sys.executable, "-c", program]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    said = [owner.stdout.readline() for _ in range(1 + len(shop_customers()))]
    address = re.search(r"127\.0\.0\.1:(\d+)", said[0])
    assert SHOP_NAME in said[0] and all(c.email in line and c.password in line
                                        for c, line in zip(shop_customers(), said[1:], strict=True))
    connection = http.client.HTTPConnection(address[0], timeout=60)
    connection.request("GET", "/catalogue/")
    assert connection.getresponse().status == 200
    os.killpg(owner.pid, signal.SIGINT)
    assert owner.wait(120) == 0 and owner.stderr.read() == ""
    assert within(120, lambda: refused(int(address[1])))


# ---------------------------------------------------------------- the site of web tasks


class Context:
    "What a site needs of a context of playwright."

    def __init__(self):
        self.cookies = []

    def add_cookies(self, cookies):
        self.cookies += cookies


@needs_shop
def test_the_site_logs_the_customer_of_a_task_in(cache):
    site, context = ShopSite(), Context()
    try:
        (address,) = site.urls().values()
        assert set(site.urls()) == {"__SHOPPING__"} and not address.endswith("/")
        site.reset({})
        site.log_in(context, None, {})
        assert context.cookies == [], "a task without a customer is for a visitor"
        site.log_in(context, None, {"customer": EMMA})
        (cookie,) = context.cookies
        assert cookie["url"] == address
        visitor = Visitor(site.server)
        visitor.cookies["sessionid"] = cookie["value"]
        assert content_digest(site.database) == content_digest(shop_database()), "a log-in changes nothing that can be asked"
        assert EMMA in visitor("/accounts/profile/")[2]
        with pytest.raises(DreamgymError, match="nobody@example.com.*emma.lopez"):
            site.log_in(context, None, {"customer": "nobody@example.com"})
    finally:
        site.close()


@needs_shop
def test_the_clock_of_the_shop_starts_with_the_episode(server):
    emma = Visitor(server, EMMA)
    emma("/catalogue/")
    (number,) = rows(server.database, "SELECT id FROM catalogue_product")[0]
    emma(f"/basket/add/{number}/", {"quantity": "1"})
    ((made,),) = rows(server.database, "SELECT date_created FROM basket_line")
    assert f"{TODAY:%Y-%m-%d %H:%M:%S}" <= made < f"{TODAY + timedelta(hours=1):%Y-%m-%d %H:%M:%S}"


@needs_shop
@pytest.mark.browser
def test_a_browser_needs_nothing_from_elsewhere_and_meets_no_error(server):
    "Chromium buys something as a customer: no request leaves the shop, no script fails."
    sync_api = pytest.importorskip("playwright.sync_api")
    from dreamgym.suites.miniwob import find_browser

    site, asked, errors = ShopSite(), [], []
    site.server = server
    with sync_api.sync_playwright() as player, closing(player.chromium.launch(executable_path=find_browser())) as browser:
        context = browser.new_context()
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("response", lambda answer: errors.append(answer.url) if answer.status >= 400 else None)
        site.log_in(context, page, {"customer": EMMA})
        (address,) = site.urls().values()
        for path in ("/accounts/orders/", "/search/?q=lamp"):
            page.goto(address + path)
        page.select_option("select[name=sort_by]", "price-asc")
        page.click("article.product_pod >> nth=0 >> button")
        page.goto(address + "/basket/")
        cheapest = min((p for p in shop_products() if "lamp" in p.title.split()), key=lambda product: product.cents)
        assert cheapest.title in page.inner_text("#basket_formset")
    assert errors == [] and all(url.startswith((address, "data:")) for url in asked) and len(asked) > 20
