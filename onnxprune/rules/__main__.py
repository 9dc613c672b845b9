"""Print the table of operators, as it stands in docs/operators.md: `python -m onnxprune.rules`."""

from onnxprune.rules.table import rule_table

if __name__ == "__main__":
    print(rule_table(), end="")
