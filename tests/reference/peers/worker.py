"""One peer on one model, in its own virtual environment and process, which stays alive between its turns.

Reads a task from the first line of standard input, then a request from each further one; answers each with one line of JSON:

    {"peer", "model", "dtype", "samples", ...}  ->  {"about", "ways"}
    {"way", "repeats"}                          ->  {"seconds": [..], "rewards": [..]}     one untimed repeat, then those
    {"way", "repeats": 0}                       ->  {}                                     all loaded and compiled, nothing scored

A *way* is how a peer cuts the samples into batches; the driver tries all, and lets the fastest take part. Padding is timed, as packing is.
"""
import ctypes
import json
import os
import sys
import time

THREADS = len(os.sched_getaffinity(0))


class Unable(Exception):
    """This peer does not do this, for a reason to be told."""


def cuts(samples):
    """Way -> batches of indices. All samples at once; else by length, so many in a batch."""
    by_length = sorted(range(len(samples)), key=lambda index: len(samples[index]))
    found = {"at once": [by_length]}
    for size in (1, 2, 4, 8, 16):
        if size < len(samples):
            found[f"by {size}"] = [by_length[start:start + size] for start in range(0, len(samples), size)]
    return found


def padded(samples, batch):
    """Ids and mask as numpy arrays; no mask where no sample is padded."""
    import numpy

    longest = max(len(samples[index]) for index in batch)
    ids = numpy.zeros((len(batch), longest), dtype=numpy.int64)
    mask = numpy.zeros_like(ids)
    for row, index in enumerate(batch):
        ids[row, :len(samples[index])] = samples[index]
        mask[row, :len(samples[index])] = 1
    return ids, None if mask.all() else mask


class Peer:
    """What all have: `samples`, `ways`, `about`, and `score(way)` -> rewards."""

    def ready(self, way):
        pass


class Torch(Peer):
    """torch with transformers: as it is, compiled by inductor, or by zentorch; and with a shared prompt computed once."""

    def __init__(self, task):
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(THREADS)
        torch.set_flush_denormal(task["is_tuned"])
        self.torch, self.samples, self.prompt = torch, task["samples"], task["prompt"]
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[task["dtype"]]
        self.model = transformers.AutoModelForSequenceClassification.from_pretrained(task["model"], dtype=dtype).eval()
        self.model.config.use_cache = False
        self.forward, self.ways = self.model, cuts(self.samples)
        self.about = f"torch {torch.__version__}, transformers {transformers.__version__}"
        if task["compiler"]:
            if task["compiler"] == "zentorch":
                import zentorch

                if "avx512" not in open("/proc/cpuinfo").read():
                    raise Unable("zentorch optimises on CPUs with AVX-512 only")
                self.about += f", zentorch {zentorch.__version__}"
            import torch._inductor.config

            torch._inductor.config.freezing = True
            # Compiling takes half a minute for each shape, or once for shapes that are free: few ways.
            is_even = len({len(ids) for ids in self.samples}) == 1
            kept = ["at once", "by 1", "by 8"] if is_even else ["by 8", "by 1"]
            self.ways = {name: self.ways[name] for name in kept if name in self.ways}
            torch._dynamo.config.cache_size_limit = 64
            self.forward = torch.compile(self.model, backend=task["compiler"], dynamic=None if is_even else True)
        if self.prompt and not task["compiler"]:
            self.ways = {"prompt once": None, **self.ways}

    def score(self, way):
        with self.torch.inference_mode() if self.forward is self.model else self.torch.no_grad():
            if way == "prompt once":
                return self.after_prompt()
            rewards = [0.0] * len(self.samples)
            for batch in self.ways[way]:
                ids, mask = padded(self.samples, batch)
                inputs = {"input_ids": self.torch.from_numpy(ids)}
                if mask is not None:
                    inputs["attention_mask"] = self.torch.from_numpy(mask)
                for index, reward in zip(batch, self.forward(**inputs).logits[:, 0].float().tolist()):
                    rewards[index] = reward
            return rewards

    def after_prompt(self):
        """The shared tokens once into a cache; then all responses, which are of one length, as its continuations."""
        torch, body = self.torch, self.model.model
        ids = torch.tensor(self.samples)
        cache = body(input_ids=ids[:1, :self.prompt], use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(ids))
        hidden = body(input_ids=ids[:, self.prompt:], past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        return self.model.score(hidden)[:, 0].float().tolist()


class OpenVino(Peer):
    """OpenVINO's runtime on its own format, by a hint; batches are requests that run beside each other."""

    def __init__(self, task):
        import openvino

        self.openvino, self.samples, self.hint = openvino, task["samples"], task["hint"]
        self.core, self.model, self.dtype, self.compiled = openvino.Core(), task["model"] + "-openvino", task["dtype"], {}
        self.core.set_property({"CACHE_DIR": ""})
        self.ways = cuts(self.samples)
        self.about = f"openvino {openvino.__version__.split('-')[0]}"
        if self.dtype == "bf16":
            capabilities = self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            if "BF16" not in capabilities:
                raise Unable(f"openvino computes no bfloat16 on this CPU: {', '.join(capabilities)}")

    def queue(self, way):
        """Requests for a way. Shapes are fixed where all of a way's batches have the same: the compiler then knows more."""
        shapes = {(len(batch), max(len(self.samples[index]) for index in batch)) for batch in self.ways[way]}
        is_even = len({len(ids) for ids in self.samples}) == 1
        shape = shapes.pop() if len(shapes) == 1 and is_even else None
        key = shape or "free"
        if key not in self.compiled:
            self.compiled.clear()  # a model at a time: each holds its own weights
            model = self.core.read_model(f"{self.model}/{'plain' if is_even else 'masked'}.xml")
            if shape:
                model.reshape({port: list(shape) for port in model.inputs})
            settings = {"PERFORMANCE_HINT": self.hint, "INFERENCE_PRECISION_HINT": self.dtype, "INFERENCE_NUM_THREADS": THREADS}
            compiled = self.core.compile_model(model, "CPU", settings)
            queue = self.openvino.AsyncInferQueue(compiled, 0)
            queue.set_callback(self.keep)
            self.compiled[key] = queue
        return self.compiled[key]

    def ready(self, way):
        self.queue(way)

    def keep(self, request, batch):
        logits = request.get_output_tensor(0).data
        for row, index in enumerate(batch):
            self.rewards[index] = float(logits[row, 0])

    def score(self, way):
        queue, self.rewards = self.queue(way), [0.0] * len(self.samples)
        for batch in reversed(self.ways[way]):  # the longest first, so that streams end together
            ids, mask = padded(self.samples, batch)
            inputs = {"input_ids": ids}
            if len(queue[0].model_inputs) == 2:
                inputs["attention_mask"] = ids * 0 + 1 if mask is None else mask
            queue.start_async(inputs, batch)
        queue.wait_all()
        return self.rewards


class OnnxRuntime(Peer):
    """ONNX Runtime on torch's export, with its own fusions of BERT where they apply."""

    def __init__(self, task):
        import onnxruntime

        folder = task["model"] + "-onnx"
        self.samples, self.ways, self.sessions = task["samples"], {}, {}
        is_even = len({len(ids) for ids in self.samples}) == 1
        name = "plain" if is_even else "masked"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        # A session that waits must not spin: others have their turns.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        self.about = f"onnxruntime {onnxruntime.__version__}"
        for form in (name, f"{name}-fused"):
            if os.path.exists(f"{folder}/{form}.onnx"):
                self.sessions[form] = onnxruntime.InferenceSession(f"{folder}/{form}.onnx", options, providers=["CPUExecutionProvider"])
                self.ways |= {f"{way}, {form}": batches for way, batches in cuts(self.samples).items()}

    def score(self, way):
        session, rewards = self.sessions[way.split(", ")[1]], [0.0] * len(self.samples)
        for batch in self.ways[way]:
            ids, mask = padded(self.samples, batch)
            inputs = {"input_ids": ids}
            if len(session.get_inputs()) == 2:
                inputs["attention_mask"] = ids * 0 + 1 if mask is None else mask
            for index, reward in zip(batch, session.run(None, inputs)[0][:, 0].tolist()):
                rewards[index] = reward
        return rewards


class Vllm(Peer):
    """vLLM as a classifier, in this process; a shared prompt is in its prefix cache after the first sample."""

    def __init__(self, task):
        if not task["zentorch"]:
            sys.modules["zentorch"] = None  # vLLM takes it wherever it can be imported
        import vllm
        from vllm.platforms import current_platform

        if task["zentorch"] and not current_platform.is_zen_cpu():
            raise Unable("vLLM takes zentorch on AMD's CPUs with AVX-512 only")
        self.samples, self.has_prompt = task["samples"], task["prompt"] > 0
        longest = max(map(len, self.samples))
        self.model = vllm.LLM(
            task["model"], runner="pooling", convert="classify", dtype={"f32": "float32", "bf16": "bfloat16"}[task["dtype"]],
            max_model_len=max(longest, 64), enable_prefix_caching=self.has_prompt, seed=0,
            max_num_batched_tokens=max(sum(map(len, self.samples)), 2048), max_num_seqs=max(len(self.samples), 8), disable_log_stats=True,
        )
        self.parameters = vllm.PoolingParams(use_activation=False)
        self.ways = {"one, then all": None} if self.has_prompt else {"at once": None}
        self.about = f"vllm {vllm.__version__}"
        if task["zentorch"]:
            import zentorch

            self.about += f" with zentorch {zentorch.__version__}"

    def ask(self, samples):
        found = self.model.classify([{"prompt_token_ids": ids} for ids in samples], pooling_params=self.parameters, use_tqdm=False)
        return [answer.outputs.probs[0] for answer in found]

    def score(self, way):
        if not self.has_prompt:
            return self.ask(self.samples)
        self.model.reset_prefix_cache()  # of the repeat before
        return self.ask(self.samples[:1]) + self.ask(self.samples[1:])


PEERS = {"torch": Torch, "openvino": OpenVino, "onnxruntime": OnnxRuntime, "vllm": Vllm}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**what):
        print(json.dumps(what), file=answers, flush=True)

    # A peer ends with its driver, whatever becomes of that one (PR_SET_PDEATHSIG).
    ctypes.CDLL(None).prctl(1, 15)
    task = json.loads(sys.stdin.readline())
    try:
        peer = PEERS[task["peer"]](task)
        answer(about=peer.about, ways=list(peer.ways))
        for line in sys.stdin:
            request = json.loads(line)
            if request["repeats"] == 0:
                peer.ready(request["way"])
                answer()
                continue
            rewards, seconds = peer.score(request["way"]), []
            for _ in range(request["repeats"]):
                started = time.perf_counter()
                rewards = peer.score(request["way"])
                seconds.append(time.perf_counter() - started)
            answer(seconds=seconds, rewards=rewards)
    except Exception as error:  # whatever a peer says, it is told beside the table
        import traceback

        traceback.print_exc()
        kind = "" if isinstance(error, Unable) else f"{type(error).__name__}: "
        answer(error=f"{kind}{error}".splitlines()[0][:300])
    os._exit(0)  # engines' own threads would wait for each other


if __name__ == "__main__":
    main()
