"""A tool for examples/plan_execute_review.yaml: JSON arguments on stdin, a JSON answer on stdout."""

import json
import sys

args = json.load(sys.stdin)
words = len(args["text"].split())
verdict = "short enough" if words <= args["limit"] else f"{words - args['limit']} words too long"
print(json.dumps({"words": words, "verdict": verdict}))
