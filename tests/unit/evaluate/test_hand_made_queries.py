"""Hand-made queries over typed schemas: a reference, a way to say the same, a near miss."""

import os
import random
import subprocess
import sys
import zlib
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.evaluate.sql.execution import Database, QueryError, same_answer
from modelmill.evaluate.sql.mutations import mutations_of
from modelmill.evaluate.sql.suite import Suite, constants_of, is_equivalent, suite_for
from modelmill.evaluate.sql.tokens import canonical_text, statements_of, tokens_of

SHOP = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT, joined DATE);
CREATE TABLE products (id INTEGER PRIMARY KEY, title VARCHAR(80), price DECIMAL(8, 2),
                       category TEXT, in_stock BOOLEAN);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customers (id),
                     product_id INTEGER REFERENCES products (id), quantity INT, placed DATE);
"""
STAFF = """
CREATE TABLE departments (dept_id INT PRIMARY KEY, dept_name TEXT UNIQUE, budget REAL);
CREATE TABLE employees (emp_id INT PRIMARY KEY, emp_name TEXT, dept_id INT, salary INT,
                        manager_id INT, hired DATE,
                        FOREIGN KEY (dept_id) REFERENCES departments (dept_id));
"""
LEAGUE = """
CREATE TABLE teams (team VARCHAR, city VARCHAR, founded INT);
CREATE TABLE games (home VARCHAR, away VARCHAR, home_goals INT, away_goals INT, season INT,
                    PRIMARY KEY (home, away, season));
"""


class Example(NamedTuple):
    """A reference, an equivalent query and a wrong one that is easily taken for it."""

    schema: str
    reference: str
    equivalent: str
    wrong: str


EXAMPLES = (
    Example(
        SHOP,
        "SELECT name FROM customers WHERE city = 'Oslo'",
        "select c.name from customers as c where 'Oslo' = c.city;",
        "SELECT name FROM customers WHERE city = 'oslo'",
    ),
    Example(
        SHOP,
        "SELECT title, price FROM products WHERE price > 100",
        "SELECT p.title AS t, p.price FROM products p WHERE NOT p.price <= 100",
        "SELECT title, price FROM products WHERE price >= 100",
    ),
    Example(
        SHOP,
        "SELECT COUNT(*) FROM orders WHERE quantity BETWEEN 2 AND 5",
        "SELECT COUNT(id) FROM orders WHERE quantity >= 2 AND quantity <= 5",
        "SELECT COUNT(*) FROM orders WHERE quantity > 2 AND quantity < 5",
    ),
    Example(
        SHOP,
        "SELECT DISTINCT city FROM customers",
        "SELECT city FROM customers GROUP BY city",
        "SELECT city FROM customers",
    ),
    Example(
        SHOP,
        "SELECT AVG(price) FROM products WHERE category = 'books'",
        "SELECT SUM(price) * 1.0 / COUNT(price) FROM products WHERE category IN ('books')"
        " HAVING COUNT(*) > 0",
        "SELECT SUM(price) FROM products WHERE category = 'books'",
    ),
    Example(
        SHOP,
        "SELECT category, COUNT(*) FROM products GROUP BY category",
        "SELECT category, SUM(1) FROM products GROUP BY 1",
        "SELECT category, COUNT(DISTINCT title) FROM products GROUP BY category",
    ),
    Example(
        SHOP,
        "SELECT category FROM products GROUP BY category HAVING COUNT(*) > 3",
        "SELECT category FROM products GROUP BY category HAVING COUNT(*) >= 4",
        "SELECT category FROM products GROUP BY category HAVING COUNT(*) >= 3",
    ),
    Example(
        SHOP,
        "SELECT category, MAX(price) FROM products GROUP BY category HAVING MAX(price) < 50",
        "SELECT category, MAX(price) AS m FROM products GROUP BY category HAVING m < 50",
        "SELECT category, MAX(price) FROM products WHERE price < 50 GROUP BY category",
    ),
    Example(
        SHOP,
        "SELECT title FROM products ORDER BY price DESC",
        "SELECT title FROM products ORDER BY -price",
        "SELECT title FROM products ORDER BY price",
    ),
    Example(
        SHOP,
        "SELECT title FROM products ORDER BY price DESC LIMIT 3",
        "SELECT title FROM products ORDER BY price DESC LIMIT 3 OFFSET 0",
        "SELECT title FROM products ORDER BY price DESC LIMIT 2",
    ),
    Example(
        SHOP,
        "SELECT name FROM customers ORDER BY city, name DESC",
        "SELECT name FROM customers ORDER BY 'x', city ASC, name DESC",
        "SELECT name FROM customers ORDER BY city, name",
    ),
    Example(
        SHOP,
        "SELECT c.name, o.quantity FROM customers c JOIN orders o ON c.id = o.customer_id",
        "SELECT name, quantity FROM orders, customers WHERE customers.id = orders.customer_id",
        "SELECT c.name, o.quantity FROM customers c JOIN orders o ON c.id = o.product_id",
    ),
    Example(
        SHOP,
        "SELECT c.name FROM customers c LEFT JOIN orders o ON o.customer_id = c.id"
        " WHERE o.id IS NULL",
        "SELECT name FROM customers WHERE id NOT IN (SELECT customer_id FROM orders)",
        "SELECT name FROM customers WHERE id IN (SELECT customer_id FROM orders)",
    ),
    Example(
        SHOP,
        "SELECT name FROM customers WHERE id NOT IN (SELECT customer_id FROM orders)",
        "SELECT name FROM customers c WHERE NOT EXISTS"
        " (SELECT 1 FROM orders o WHERE o.customer_id = c.id)",
        "SELECT name FROM customers WHERE id NOT IN (SELECT product_id FROM orders)",
    ),
    Example(
        SHOP,
        "SELECT p.title, SUM(o.quantity) FROM products p JOIN orders o ON p.id = o.product_id"
        " GROUP BY p.id, p.title",
        "SELECT title, (SELECT SUM(quantity) FROM orders WHERE product_id = p.id) FROM products p"
        " WHERE id IN (SELECT product_id FROM orders)",
        "SELECT p.title, COUNT(o.quantity) FROM products p JOIN orders o ON p.id = o.product_id"
        " GROUP BY p.id, p.title",
    ),
    Example(
        SHOP,
        "SELECT SUM(p.price * o.quantity) FROM orders o JOIN products p ON p.id = o.product_id",
        "SELECT SUM(quantity * price) FROM products p, orders o WHERE o.product_id = p.id",
        "SELECT SUM(p.price + o.quantity) FROM orders o JOIN products p ON p.id = o.product_id",
    ),
    Example(
        SHOP,
        "SELECT name FROM customers WHERE city = 'Rome' OR city = 'Paris'",
        "SELECT name FROM customers WHERE city IN ('Paris', 'Rome')",
        "SELECT name FROM customers WHERE city = 'Rome' OR name = 'Paris'",
    ),
    Example(
        SHOP,
        "SELECT title FROM products WHERE in_stock = 1 AND price < 20",
        "SELECT title FROM products WHERE in_stock AND price < 20",
        "SELECT title FROM products WHERE in_stock = 1 OR price < 20",
    ),
    Example(
        SHOP,
        "SELECT title FROM products WHERE title LIKE '%lamp%'",
        "SELECT title FROM products WHERE instr(lower(title), 'lamp') > 0",
        "SELECT title FROM products WHERE title LIKE 'lamp%'",
    ),
    Example(
        SHOP,
        "SELECT name FROM customers WHERE joined >= '2020-01-01' AND joined < '2021-01-01'",
        "SELECT name FROM customers WHERE joined >= '2020-01-01' AND NOT joined >= '2021-01-01'",
        "SELECT name FROM customers WHERE joined >= '2020-01-01' AND joined <= '2021-01-01'",
    ),
    Example(
        SHOP,
        "SELECT COUNT(*) FROM orders WHERE strftime('%Y', placed) = '2021'",
        "SELECT COUNT(*) FROM orders WHERE substr(placed, 1, 4) = '2021' AND placed LIKE '%-%-%'",
        "SELECT COUNT(*) FROM orders WHERE strftime('%Y', placed) = '2020'",
    ),
    Example(
        SHOP,
        "SELECT name FROM customers WHERE city IS NULL",
        "SELECT name FROM customers WHERE city ISNULL",
        "SELECT name FROM customers WHERE city IS NOT NULL",
    ),
    Example(
        SHOP,
        "SELECT MIN(price), MAX(price) FROM products WHERE category <> 'toys'",
        "SELECT MIN(price), MAX(price) FROM products WHERE NOT category = 'toys'",
        "SELECT MAX(price), MIN(price) FROM products WHERE category <> 'toys'",
    ),
    Example(
        SHOP,
        "SELECT COUNT(DISTINCT customer_id) FROM orders",
        "SELECT COUNT(*) FROM (SELECT DISTINCT customer_id FROM orders)",
        "SELECT COUNT(customer_id) FROM orders",
    ),
    Example(
        STAFF,
        "SELECT emp_name FROM employees WHERE salary > (SELECT AVG(salary) FROM employees)",
        "WITH m AS (SELECT AVG(salary) AS a FROM employees)"
        " SELECT emp_name FROM employees, m WHERE salary > a",
        "SELECT emp_name FROM employees WHERE salary > (SELECT MIN(salary) FROM employees)",
    ),
    Example(
        STAFF,
        "SELECT d.dept_name, AVG(e.salary) FROM employees e JOIN departments d"
        " ON e.dept_id = d.dept_id GROUP BY d.dept_name",
        "SELECT dept_name, AVG(salary) FROM departments NATURAL JOIN employees GROUP BY dept_name",
        "SELECT d.dept_name, AVG(d.budget) FROM employees e JOIN departments d"
        " ON e.dept_id = d.dept_id GROUP BY d.dept_name",
    ),
    Example(
        STAFF,
        "SELECT dept_name FROM departments WHERE dept_id NOT IN (SELECT dept_id FROM employees)",
        "SELECT d.dept_name FROM departments d LEFT JOIN employees e ON d.dept_id = e.dept_id"
        " WHERE e.emp_id IS NULL",
        "SELECT dept_name FROM departments WHERE dept_id NOT IN (SELECT emp_id FROM employees)",
    ),
    Example(
        STAFF,
        "SELECT e.emp_name, m.emp_name FROM employees e JOIN employees m"
        " ON e.manager_id = m.emp_id",
        "SELECT a.emp_name, b.emp_name FROM employees b JOIN employees a ON a.manager_id=b.emp_id",
        "SELECT m.emp_name, e.emp_name FROM employees e JOIN employees m"
        " ON e.manager_id = m.emp_id",
    ),
    Example(
        STAFF,
        "SELECT emp_name FROM employees WHERE dept_id = 3 AND salary >= 50000",
        "SELECT emp_name FROM employees WHERE salary >= 5e4 AND dept_id = 3",
        "SELECT emp_name FROM employees WHERE dept_id = 3 AND salary >= 5000",
    ),
    Example(
        STAFF,
        "SELECT emp_name FROM employees ORDER BY hired LIMIT 1",
        "SELECT emp_name FROM employees ORDER BY hired ASC, emp_id LIMIT 1",
        "SELECT emp_name FROM employees ORDER BY hired DESC LIMIT 1",
    ),
    Example(
        STAFF,
        "SELECT dept_id, COUNT(*) AS n FROM employees GROUP BY dept_id ORDER BY n DESC LIMIT 1",
        "SELECT dept_id, COUNT(*) FROM employees GROUP BY dept_id ORDER BY COUNT(*) DESC LIMIT 1",
        "SELECT dept_id, COUNT(*) AS n FROM employees GROUP BY dept_id ORDER BY n LIMIT 1",
    ),
    Example(
        STAFF,
        "SELECT dept_name FROM departments WHERE budget = (SELECT MAX(budget) FROM departments)",
        "SELECT dept_name FROM departments WHERE budget >= (SELECT MAX(budget) FROM departments)",
        "SELECT dept_name FROM departments WHERE budget = (SELECT MIN(budget) FROM departments)",
    ),
    Example(
        STAFF,
        "SELECT d.dept_name FROM departments d JOIN employees e ON d.dept_id = e.dept_id"
        " GROUP BY d.dept_id, d.dept_name HAVING SUM(e.salary) > 100000",
        "SELECT dept_name FROM departments d WHERE"
        " (SELECT SUM(salary) FROM employees e WHERE e.dept_id = d.dept_id) > 100000",
        "SELECT d.dept_name FROM departments d JOIN employees e ON d.dept_id = e.dept_id"
        " GROUP BY d.dept_id, d.dept_name HAVING MAX(e.salary) > 100000",
    ),
    Example(
        STAFF,
        "SELECT dept_id FROM employees WHERE salary > 90 INTERSECT"
        " SELECT dept_id FROM employees WHERE salary < 40",
        "SELECT DISTINCT dept_id FROM employees WHERE salary > 90 AND dept_id IN"
        " (SELECT dept_id FROM employees WHERE salary < 40)",
        "SELECT dept_id FROM employees WHERE salary > 90 UNION"
        " SELECT dept_id FROM employees WHERE salary < 40",
    ),
    Example(
        STAFF,
        "SELECT emp_name, CASE WHEN salary > 70 THEN 'high' ELSE 'low' END FROM employees",
        "SELECT emp_name, iif(salary > 70, 'high', 'low') FROM employees",
        "SELECT emp_name, CASE WHEN salary >= 70 THEN 'high' ELSE 'low' END FROM employees",
    ),
    Example(
        LEAGUE,
        "SELECT home FROM games WHERE home_goals > away_goals AND season = 2019",
        "SELECT home FROM games WHERE season = 2019 AND away_goals < home_goals",
        "SELECT home FROM games WHERE home_goals < away_goals AND season = 2019",
    ),
    Example(
        LEAGUE,
        "SELECT t.city, SUM(g.home_goals) FROM teams t JOIN games g ON t.team = g.home"
        " WHERE g.season > 2015 GROUP BY t.city",
        "SELECT city, SUM(home_goals) FROM games JOIN teams ON home = team"
        " WHERE season >= 2016 GROUP BY city",
        "SELECT t.city, SUM(g.home_goals) FROM teams t JOIN games g ON t.team = g.away"
        " WHERE g.season > 2015 GROUP BY t.city",
    ),
    Example(
        LEAGUE,
        "SELECT team FROM teams WHERE team NOT IN (SELECT away FROM games WHERE season = 2018)",
        "SELECT team FROM teams WHERE NOT EXISTS"
        " (SELECT * FROM games WHERE away = team AND season = 2018)",
        "SELECT team FROM teams WHERE team NOT IN (SELECT away FROM games)",
    ),
    Example(
        LEAGUE,
        "SELECT season, AVG(home_goals - away_goals) FROM games GROUP BY season"
        " ORDER BY season DESC",
        "SELECT season, AVG(home_goals) - AVG(away_goals) FROM games GROUP BY season"
        " ORDER BY 1 DESC",
        "SELECT season, AVG(away_goals - home_goals) FROM games GROUP BY season"
        " ORDER BY season DESC",
    ),
    Example(
        LEAGUE,
        "SELECT city FROM teams WHERE founded < 1900 AND (city = 'Bath' OR team LIKE 'R%')",
        "SELECT city FROM teams WHERE founded < 1900 AND city = 'Bath'"
        " UNION ALL SELECT city FROM teams WHERE founded < 1900 AND city <> 'Bath'"
        " AND team LIKE 'R%'",
        "SELECT city FROM teams WHERE founded < 1900 AND city = 'Bath' OR team LIKE 'R%'",
    ),
    Example(
        LEAGUE,
        "SELECT home, away FROM games WHERE season IN (2010, 2012) AND home_goals = 0",
        "SELECT home, away FROM games WHERE NOT home_goals AND (season = 2010 OR season = 2012)",
        "SELECT home, away FROM games WHERE season BETWEEN 2010 AND 2012 AND home_goals = 0",
    ),
)


def _suite(example: Example) -> Suite:
    suite = suite_for(example.schema, example.reference)
    assert isinstance(suite, Suite), suite
    return suite


def _accepts(suite: Suite, query: str) -> bool:
    (statement,) = statements_of(tokens_of(query))
    return is_equivalent(suite, statement)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.reference[:60])
def test_reference_said_in_another_way_is_right(example: Example) -> None:
    """A query that means the same scores as right, however it is written."""
    assert _accepts(_suite(example), example.equivalent)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.reference[:60])
def test_near_miss_is_wrong(example: Example) -> None:
    """A query that is easily taken for the reference scores as wrong."""
    assert not _accepts(_suite(example), example.wrong)


def test_suites_catch_nearly_all_mutations() -> None:
    """At least 95 % of all mutations are caught, equivalent ones counted as missed."""
    suites = [_suite(example) for example in EXAMPLES]
    caught = sum(suite.caught for suite in suites)
    assert caught / sum(suite.mutations for suite in suites) >= 0.95


def test_suite_does_not_depend_on_the_process() -> None:
    """The same schema and reference make the same databases, whatever Python's hash seed."""
    program = (
        "import sys, zlib; from modelmill.evaluate.sql.suite import suite_for;"
        "print(zlib.crc32(repr(suite_for(*sys.argv[1:]).cases).encode()))"
    )
    example = EXAMPLES[14]
    found = {
        subprocess.run(  # the module path is all that the child needs of this process
            [sys.executable, "-c", program, example.schema, example.reference],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {f"{zlib.crc32(repr(_suite(example).cases).encode())}\n".encode()}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(EXAMPLES), st.randoms(use_true_random=False))
def test_mutation_that_changes_the_answer_is_wrong(example: Example, rng: random.Random) -> None:
    """Every runnable mutation the control counts as caught scores as wrong."""
    suite = _suite(example)
    with suite.sandbox() as sandbox:
        constants = constants_of(sandbox, suite.reference)
    missed = {canonical_text(mutation.query) for mutation in suite.missed}
    mutation = rng.choice(mutations_of(suite.schema, suite.reference, constants))
    if canonical_text(mutation.query) in missed:
        return
    try:
        is_right = is_equivalent(suite, mutation.query)
    except QueryError:
        is_right = False
    assert not is_right


def test_random_strings_catch_far_fewer_mutations() -> None:
    """The control can fail: tables of unrelated random text hardly tell any query apart."""
    rng = random.Random(0)
    caught = total = 0
    for example in EXAMPLES:
        suite = _suite(example)
        with suite.sandbox() as sandbox:
            constants = constants_of(sandbox, suite.reference)
            sandbox.load(_random_strings(suite, rng))
            expected = sandbox.run(suite.reference)
            for mutation in mutations_of(suite.schema, suite.reference, constants):
                try:
                    answer = sandbox.run(mutation.query)
                except QueryError:
                    continue
                caught += not same_answer(expected, answer, ordered=suite.ordered)
                total += 1
    assert caught / total < 0.6


def _random_strings(suite: Suite, rng: random.Random) -> Database:
    return {
        name: tuple(tuple(f"{rng.getrandbits(64):x}" for _ in table.columns) for _ in range(8))
        for name, table in suite.schema.tables.items()
    }
