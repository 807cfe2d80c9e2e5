"""Small Python functions on request."""

from __future__ import annotations

import textwrap
from random import Random

from corpus.words import words


def code(r: Random) -> tuple[str, str, str, str]:
    """Question, thought, answer, and the bare source."""
    v, w = r.sample(words("x y n m a b value number count item"), 2)
    xs = r.choice(words("items values numbers data words lst"))
    k = r.randrange(1, 20)

    def nm(*c):
        return r.choice(c)

    F = [
        (
            f"adds {k} to a number",
            nm("add", "plus", f"add_{k}"),
            v,
            f"Return {v} plus {k}.",
            f"return {v} + {k}",
            "{f}(1)",
            str(1 + k),
        ),
        (
            "adds two numbers",
            nm("add", "add_numbers", "plus"),
            f"{v}, {w}",
            "Return the sum of two numbers.",
            f"return {v} + {w}",
            "{f}(2, 3)",
            "5",
        ),
        (
            "multiplies two numbers",
            nm("multiply", "times", "product"),
            f"{v}, {w}",
            "Return the product of two numbers.",
            f"return {v} * {w}",
            "{f}(2, 3)",
            "6",
        ),
        (
            "returns the larger of two numbers",
            nm("larger", "maximum", "bigger"),
            f"{v}, {w}",
            "Return the larger number.",
            f"if {v} > {w}:\n    return {v}\nreturn {w}",
            "{f}(2, 3)",
            "3",
        ),
        (
            "checks if a number is even",
            nm("is_even", "even"),
            v,
            f"Return True if {v} is even.",
            f"return {v} % 2 == 0",
            "{f}(4)",
            "True",
        ),
        (
            "computes the factorial",
            nm("factorial", "fact"),
            "n",
            "Return n factorial.",
            "if n < 2:\n    return 1\nreturn n * {f}(n - 1)",
            "{f}(4)",
            "24",
        ),
        (
            "computes the n-th Fibonacci number",
            nm("fib", "fibonacci"),
            "n",
            "Return the n-th Fibonacci number.",
            "a, b = 0, 1\nfor _ in range(n):\n    a, b = b, a + b\nreturn a",
            "{f}(7)",
            "13",
        ),
        (
            "reverses a string",
            nm("reverse", "reverse_string"),
            "text",
            "Return the text backwards.",
            "return text[::-1]",
            '{f}("abc")',
            '"cba"',
        ),
        (
            "counts the vowels in a string",
            nm("count_vowels", "vowels"),
            "text",
            "Count the vowels in the text.",
            'return sum(1 for c in text.lower() if c in "aeiou")',
            '{f}("hello")',
            "2",
        ),
        (
            "sums a list",
            nm("total", "sum_list", "add_all"),
            xs,
            "Return the sum of the list.",
            f"total = 0\nfor {v} in {xs}:\n    total += {v}\nreturn total",
            "{f}([1, 2, 3])",
            "6",
        ),
        (
            "finds the largest value of a list",
            nm("largest", "find_max"),
            xs,
            "Return the largest value.",
            f"best = {xs}[0]\nfor {v} in {xs}:\n    if {v} > best:\n        best = {v}\nreturn best",
            "{f}([1, 5, 2])",
            "5",
        ),
        (
            "computes the mean of a list",
            nm("mean", "average"),
            xs,
            "Return the mean of the list.",
            f"return sum({xs}) / len({xs})",
            "{f}([1, 2, 3])",
            "2.0",
        ),
        (
            f"keeps the values above {k}",
            nm("above", "filter_large"),
            xs,
            f"Return the values above {k}.",
            f"return [{v} for {v} in {xs} if {v} > {k}]",
            f"{{f}}([{k}, {k + 1}])",
            f"[{k + 1}]",
        ),
        (
            "counts the words in a text",
            nm("count_words", "word_count"),
            "text",
            "Count the words in the text.",
            "return len(text.split())",
            '{f}("one two")',
            "2",
        ),
        (
            "checks if a word is a palindrome",
            nm("is_palindrome", "palindrome"),
            "word",
            "Return True if the word reads the same backwards.",
            "return word == word[::-1]",
            '{f}("level")',
            "True",
        ),
        (
            "reads a file",
            nm("read_file", "load_text"),
            "path",
            "Return the text of a file.",
            "with open(path) as f:\n    return f.read()",
            None,
            None,
        ),
        (
            "writes text to a file",
            nm("write_file", "save_text"),
            "path, text",
            "Write the text to a file.",
            'with open(path, "w") as f:\n    f.write(text)',
            None,
            None,
        ),
        (
            "removes duplicates from a list",
            nm("unique", "remove_duplicates"),
            xs,
            "Return the list without duplicates.",
            f"out = []\nfor {v} in {xs}:\n    if {v} not in out:\n        out.append({v})\nreturn out",
            "{f}([1, 1, 2])",
            "[1, 2]",
        ),
        (
            "counts how often each value occurs",
            nm("count_items", "histogram"),
            xs,
            "Count each value.",
            f"counts = {{}}\nfor {v} in {xs}:\n    counts[{v}] = counts.get({v}, 0) + 1\nreturn counts",
            "{f}([1, 1, 2])",
            "{1: 2, 2: 1}",
        ),
        (
            "checks if a number is prime",
            nm("is_prime", "prime"),
            "n",
            "Return True if n is a prime number.",
            "if n < 2:\n    return False\nfor i in range(2, int(n ** 0.5) + 1):\n    if n % i == 0:\n        return False\nreturn True",
            "{f}(7)",
            "True",
        ),
        (
            "computes the greatest common divisor",
            "gcd",
            "a, b",
            "Return the greatest common divisor.",
            "while b:\n    a, b = b, a % b\nreturn a",
            "{f}(12, 18)",
            "6",
        ),
        (
            "turns Celsius into Fahrenheit",
            nm("to_fahrenheit", "c_to_f"),
            "c",
            "Turn Celsius into Fahrenheit.",
            "return c * 9 / 5 + 32",
            "{f}(100)",
            "212.0",
        ),
        (
            "prints the numbers from 1 to n",
            nm("print_numbers", "count_up"),
            "n",
            "Print the numbers from 1 to n.",
            "for i in range(1, n + 1):\n    print(i)",
            None,
            None,
        ),
        (
            "sorts a list",
            nm("sort_list", "sorted_copy"),
            xs,
            "Return a sorted copy.",
            f"return sorted({xs})",
            "{f}([3, 1, 2])",
            "[1, 2, 3]",
        ),
        (
            "greets a person",
            nm("greet", "hello"),
            "name",
            "Greet a person.",
            'return f"Hello, {name}!"',
            '{f}("Ann")',
            '"Hello, Ann!"',
        ),
    ]
    what, f, args, doc, body, ex, val = r.choice(F)
    body = body.replace("{f}", f)
    src = (
        f"def {f}({args}):\n"
        + (f'    """{doc}"""\n' if r.random() < 0.6 else "")
        + textwrap.indent(body, "    ")
    )
    if ex and r.random() < 0.3:
        src += f"\n\n\nassert {ex.replace('{f}', f)} == {val}"
    q = r.choice(
        [
            "Write a Python function that {w}.",
            "Write a function {f} in Python that {w}.",
            "I need Python code that {w}.",
            "Give me a Python function named {f} that {w}.",
            "How do I write a function that {w}?",
        ]
    ).format(w=what, f=f)
    a = (
        r.choice(["", "Here is the function:\n\n", "You can use this code:\n\n", "Sure!\n\n"])
        + f"```python\n{src}\n```"
    )
    return q, f"I should write a function {f} that {what}.", a, src
