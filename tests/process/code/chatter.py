"""A worker with much to say that starts quickly: it imports nothing."""


def lines(arg):
    for number in range(40):
        print(f"line {number} " + "x" * 100)
