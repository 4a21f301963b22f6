"""`lmdeploy_c lite`: compress a model. A command each for exact export, for quantisation, and for
how good the result is; LMDeploy's own are in lite_commands.py."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

from . import lite_commands
from .options import Commands, Formatter, add_model
from .output import PROG


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _w_type(text: str) -> str | dict[str, str]:
    """A type, or PATTERN=TYPE,PATTERN=TYPE."""
    if "=" not in text:
        return text
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(pattern and kind for pattern, _, kind in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a type nor PATTERN=TYPE,...")
    return {pattern: kind for pattern, _, kind in pairs}


def _add_command(commands: Commands[Any], name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        usage=f"{PROG} lite {name} [MODEL] [options]",
        formatter_class=Formatter,
        help=text,
        description=_sentence(text),
    )
    add_model(parser)
    parser.add_argument(
        "--work-dir", default="./work_dir", help="The directory to write; made where it is not."
    )
    return parser


def add_parser(commands: Commands[Any]) -> None:
    text = "compress a model: write it with 4-bit weights, or exactly as a directory"
    lite = commands.add_parser("lite", help=text, description=_sentence(text))
    inside = lite.add_subparsers(dest="lite_command", metavar="COMMAND", required=True)
    quantize = _add_command(inside, "quantize", "write a model with 3-bit, 4-bit or 8-bit weights")
    quantize.add_argument(
        "--method",
        default="best",
        help="best; or awq, awq-searched, gptq, rtn (each weight to the nearest code), which are "
        "cheaper.",
    )
    quantize.add_argument(
        "--format", default="awq", help="awq, gptq, compressed-tensors, int-quantized or gguf."
    )
    quantize.add_argument(
        "--w-bits", type=int, default=4, help="4; 3 or 8, but not in awq; of int-quantized 8."
    )
    quantize.add_argument(
        "--w-group-size",
        type=int,
        default=None,
        help="Columns that share a scale; -1: a whole row; None: the largest of 128, 64, 32 that "
        "fits the model.",
    )
    quantize.add_argument("--w-sym", action="store_true", help="Zero is the middle code.")
    quantize.add_argument(
        "--w-type",
        type=_w_type,
        default=None,
        help="Of gguf, in place of --w-bits and --w-sym: q4_1, q4_0 or q8_0; or a type for each "
        "tensor, such as '*down_proj*=q8_0,*_proj*=q4_1,*embed*=q8_0'.",
    )
    quantize.add_argument(
        "--desc-act",
        action="store_true",
        help="Columns that carry most come first, and share groups; of gptq.",
    )
    quantize.add_argument(
        "--rotate",
        action="store_true",
        help="First rotate the model, which stays the same and has fewer outliers; for --w-group-"
        "size -1.",
    )
    quantize.add_argument(
        "--dtype", default="float16", help="Of what stays a float: float16, bfloat16 or float32."
    )
    quantize.add_argument(
        "--calib-dataset",
        default="builtin",
        help="What the model reads first, so that errors count where it matters: builtin, a text "
        "of this package, of many languages and kinds; self, the model's own samples; a .txt, "
        ".jsonl or .json file; a name of LMDeploy's, such as wikitext2, of which "
        "$HF_HOME/datasets has a .txt, .jsonl or .json file; or none. Nothing is downloaded.",
    )
    quantize.add_argument(
        "--calib-samples",
        type=int,
        default=None,
        help="Windows of it, at most; None: 4 tokens for each column of the widest linear, and 24 "
        "windows at least. 0: no calibration, as --calib-dataset none.",
    )
    quantize.add_argument("--calib-seqlen", type=int, default=512, help="Tokens of a window.")
    quantize.add_argument(
        "--num-threads", type=int, default=None, help="Threads; None: all usable ones."
    )
    _add_report(quantize)
    quantize.set_defaults(run=run_quantize)
    export = _add_command(inside, "export", "write a model's floats: a directory or a GGUF file")
    export.add_argument("--format", default="hf", help="hf, a Hugging Face directory, or gguf.")
    export.add_argument(
        "--dtype",
        default="auto",
        help="auto keeps every value exactly; or float32, float16, bfloat16.",
    )
    export.set_defaults(run=run_export)
    _add_measures(inside)
    lite_commands.add_parsers(functools.partial(_add_command, inside))


def _add_report(quantize: argparse.ArgumentParser) -> None:
    quantize.add_argument(
        "--mixed",
        metavar="SIZE",
        default=None,
        help="8 bits for the linears that need them most, as many as fit: 110MB, of the file, or "
        "4.5bpw, bits per weight. In format compressed-tensors or gguf.",
    )
    quantize.add_argument(
        "--no-evaluate",
        action="store_true",
        help="Do not compare the new model with the original one at the end, for which both are in "
        "memory.",
    )
    quantize.add_argument(
        "--report",
        metavar="FILE",
        default=None,
        help="Write what was done: FILE.html, a page with pictures (needs matplotlib), or "
        "FILE.json, which WORK_DIR has as report.json anyway.",
    )


def _add_measures(inside: Commands[Any]) -> None:
    text = "a model's perplexity on a text"
    ppl = inside.add_parser(
        "ppl", formatter_class=Formatter, help=text, description=_sentence(text)
    )
    add_model(ppl)
    ppl.set_defaults(run=run_ppl)
    text = "how far a model is from a reference: KL divergence and perplexity on a text"
    kl = inside.add_parser("kl", formatter_class=Formatter, help=text, description=_sentence(text))
    kl.add_argument("reference", metavar="REFERENCE", help="the model to be near to")
    kl.add_argument("model_path", metavar="MODEL", help="the other one")
    kl.set_defaults(run=run_kl)
    for parser in (ppl, kl):
        parser.add_argument("--text", type=Path, required=True, help="A file of text.")
        parser.add_argument(
            "--window",
            type=int,
            default=512,
            help="Tokens computed together, at most the model's context.",
        )


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error.reason} at {error.start}") from None


def run_ppl(args: argparse.Namespace) -> int:
    from ..lite import perplexity

    print(perplexity(args.model_path, _text_of(args.text), window=args.window))
    return 0


def run_kl(args: argparse.Namespace) -> int:
    from ..lite import divergence

    text = _text_of(args.text)
    print(divergence(args.reference, args.model_path, text, window=args.window))
    return 0


def run_export(args: argparse.Namespace) -> int:
    from ..lite import export

    made = export(args.model_path, args.work_dir, format=args.format, dtype=args.dtype)
    print(f"{made}: {lite_commands.size_of(made)}. Try it: {PROG} chat {made}")
    return 0


def run_quantize(args: argparse.Namespace) -> int:
    from ..lite import quantize
    from ..lite.report import check_file

    if args.report is not None:
        check_file(args.report)
    report = quantize(
        args.model_path,
        args.work_dir,
        method=args.method,
        format=args.format,
        w_bits=args.w_bits,
        w_group_size=args.w_group_size,
        w_sym=args.w_sym,
        w_type=args.w_type,
        desc_act=args.desc_act,
        dtype=args.dtype,
        calib_dataset=None if args.calib_dataset == "none" else args.calib_dataset,
        calib_samples=args.calib_samples,
        calib_seqlen=args.calib_seqlen,
        rotate=args.rotate,
        mixed=args.mixed,
        evaluate=not args.no_evaluate,
        num_threads=args.num_threads,
    )
    if args.report is not None:
        report.save(args.report)
    print(lite_commands.result_of(report, Path(args.work_dir)))
    return 0
