"""Print the table of operators with rules, as it stands in docs/operators.md: `python -m onnxprune.rules`."""

from onnxprune.rules.registry import rule_table

if __name__ == "__main__":
    print(rule_table(), end="")
