"""The commands by name, and the page that lists them: all that `dct --help` needs to know, and no module of theirs."""

from dct.cli.pages import page

ABOUT = "Find, rank, steer and ablate the hidden behaviours of a language model, without labels."
EPILOG = "Begin with `dct demo`, or with `dct fit --model qwen --s 10 --t 20`."

COMMANDS = {
    "fit": "Fit a deep causal transcoder: find steering vectors V and what they cause, U.",
    "calibrate": "Find the scale R at which the response to a steering vector is nonlinear enough, and show the whole "
    "curve.",
    "scan": "Measure what every source layer does to every target layer, and propose the two to fit between.",
    "sweep": "Fit and rank a grid of layers, methods, scales, seeds, numbers of prompts and models, with one page of "
    "all.",
    "rank": "Find the vector that best makes the model do what it refuses, by judged replies, beside baselines.",
    "steer": "Complete prompts with vectors added to the residual stream, beside the unsteered model.",
    "report": "Make one page of a run: what was fitted, whether it can be trusted, and every vector with what it says.",
    "verify": "Measure a sample of a run's numbers and replies again, here, and say whether they hold.",
    "compare": "Say how far runs found the same: vectors, subspaces and kinds, beside random directions; or an SAE's "
    "features.",
    "chat": "Talk to the model with vectors acting, beside the model left alone, and change them as you go.",
    "serve": "Serve the model to programs that speak OpenAI's protocol, each request with vectors of its own.",
    "judge": "Say what each reply in a file does: complies, refuses or neither, and whether it is coherent.",
    "spectrum": "Show which input directions act together on an output: eigenvectors of a slice's second derivatives.",
    "ablate": "Project directions out of every matrix that writes into the residual stream; compare before and after.",
    "export": "Write vectors as files that llama.cpp, PEFT, transformers, vLLM or numpy read, with a card.",
    "bench": "Measure what the vectors of each fit elicit: six experiments, as tables and figures.",
    "demo": "Fit, rank, steer and ablate, start to finish: a minute on the model that ships with the package.",
    "models": "List the aliases, or say what a model looks like: blocks, width, where its block list is. Loads no "
    "weights.",
    "organism": "Make the demo model again or another one, measure it, or plant known secrets into a real model.",
}
"""Name of each command -> the first sentence of its help. A command lives in the module `dct.cli.<name>`, in which it
has its own name (a group is called `app`)."""

OPTIONS = {
    "--version": "Print the version.",
    "--install-completion": "Install completion for the current shell.",
    "--show-completion": "Show completion for the current shell, to copy it or customize the installation.",
    "-h, --help": "Show this message and exit.",
}


def overview() -> str:
    """The page of `dct --help`."""
    panels = [("Options", list(OPTIONS.items())), ("Commands", list(COMMANDS.items()))]
    return page("dct [OPTIONS] COMMAND [ARGS]...", ABOUT, panels, EPILOG)
