"""The real system: VoxCeleb2 layout, the full 256x768 matrix, a right-sized 8 -> 32 -> 128 cascade.

    python -m extract.run   --config configs/base.py --videos VOXCELEB2 --out data/vox2
    python -m slf_jax.train --config configs/base.py

Not yet trained to the end on people: no figure is claimed.

60 M and 77 M parameters; 9.2 and 20.3 GFLOP per evaluation; 1.4 TFLOP per face, where the original SLF takes 1,050. Why
these sizes, in GFLOP per evaluation (`python benchmarks/cost.py --sizes`):

- The upsampler folds 2x2 pixels into channels: 20.3, where a first level at 128 px takes 32.8.
- Its blocks are at low resolution, (1, 2, 3, 3): 16 M more parameters than (2, 2, 2, 2) for 4 % more work.
- Its attention is at 8 px only: 24.2 with 16 px as well.
- Attention of the base stage from 16 px down: 12.7 with 32 px as well, twice the seconds on a CPU; 7.9 without 16 px.
- The base stage does not fold pixels: folding would leave 2.1, but 32 px is all the detail it draws.
- Half as wide again, 104 M and 138 M parameters, costs 2.2 times as much.
- Skips are merged by a 1x1 layer before each block of the way up: 14 % and 17 % less than convolutions over both.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.workdir = "runs/base"
    config.parallel = "shard_map"  # or "pmap"
    config.stage = "all"  # or "base", "upsampler"
    config.compilation_cache = "~/.cache/slf_jax/xla"  # "" turns it off
    config.init_from = ""  # a run whose EMA weights initialise a new one
    config.profile_steps = 0  # number of steps to trace for TensorBoard
    # Training by several processes: started by srun or mpirun, or with the following three set for each process.
    config.distributed = False
    config.coordinator = ""  # HOST:PORT of process 0, without such a launcher
    config.num_processes, config.process_id = 0, -1

    config.extract = ml_collections.ConfigDict(
        dict(
            videos="data/vox2/videos",  # a folder, or a CSV that lists clips
            out="data/vox2/records",
            attributes="",  # CSV of speaker_id, age, gender, ethnicity, language, split; "": the videos' people.csv
            extractors=("ecapa", "pyannote", "titanet", "speakernet", "pyaudioanalysis", "mel", "language"),
            detector="retinaface",  # or "opencv", "mtcnn", any other of DeepFace's, "skip" (the frame is the face)
            frames=5,  # of a clip to search for a face: its middle, then 1/4, 3/4, 1/8, ...
            clips_per_shard=256,
            runner="local",  # or "ray"
            workers=0,  # processes; 0: one per GPU, or per four cores (4 GB each with all models)
            device="auto",  # "cuda", "cpu"; auto: GPUs if there are any
        )
    )
    # Weights: an id on the Hugging Face hub, or a local path. Windows: (length, hop) in seconds, whole clip (24, 24).
    config.extract.ecapa = dict(weights="speechbrain/spkrec-ecapa-voxceleb", windows=((24, 24),))
    config.extract.pyannote = dict(weights="pyannote/embedding", windows=((24, 24), (12, 4), (6, 2), (3, 2)))
    config.extract.titanet = dict(weights="nvidia/speakerverification_en_titanet_large", windows=((24, 24),))
    config.extract.speakernet = dict(weights="nvidia/speakerverification_en_speakernet", windows=((24, 24),))
    config.extract.language = dict(weights="speechbrain/lang-id-commonlanguage_ecapa")
    config.extract.deepface = dict(
        estimate=("age", "gender", "ethnicity"),  # for what no table gives; () estimates nothing
        engine="pytorch",  # or "onnx", "tensorflow"
        home="",  # weights lie in HOME/.deepface/weights; "": $DEEPFACE_HOME, or the user's home
    )
    config.data = ml_collections.ConfigDict(
        dict(
            dir="data/vox2/records",
            inputs=(  # constituents that the system uses
                "ecapa", "pyannote", "titanet", "speakernet", "pyaudioanalysis", "mel",
                "language", "age", "gender", "ethnicity",
            ),
            threads=4,  # to read and decode records
            skip_corrupt=False,  # count damaged records and use others in their place
        )
    )  # fmt: skip
    config.model = ml_collections.ConfigDict(
        dict(
            dtype="auto",  # bfloat16 on accelerators, float32 on CPU
            supported_inputs=(),  # what the networks can take, data.inputs at least; (): just these
        )
    )
    config.model.base = ml_collections.ConfigDict(
        dict(
            patch=1,  # side of the squares folded into channels before the first level
            width=128,
            mults=(1, 2, 3),  # one entry per level, highest resolution first
            blocks=(2, 2, 3),  # residual blocks down, and as many up
            self_attention=(False, True, True),
            cross_attention=(False, True, True),
            head_width=64,
            attention="xla",  # or "cudnn": fused, where compute is bfloat16 on an NVIDIA GPU
            cond_width=512,
            dropout=0.1,
            remat=False,
        )
    )
    config.model.upsampler = ml_collections.ConfigDict(
        dict(
            patch=2,
            width=96,
            mults=(1, 2, 4, 4),
            blocks=(1, 2, 3, 3),
            self_attention=(False, False, False, True),
            cross_attention=(False, False, False, True),
            head_width=48,
            attention="xla",
            cond_width=512,
            dropout=0.1,
            remat=False,
        )
    )
    config.diffusion = ml_collections.ConfigDict()
    config.diffusion.base = ml_collections.ConfigDict(
        dict(
            preconditioning="edm",  # or "v", "eps", "x0": what the network predicts
            sigma_distribution="lognormal",  # or "cosine", "linear": in training, in units of the data's std
            p_mean=-0.4,  # mean of ln sigma, for lognormal; larger for larger images
            p_std=1.2,
            weight="edm",  # of the loss, (sigma^2 + 1) / sigma^2, or "snr", 1 / sigma^2
            max_weight=1e4,  # clips it; with "snr" this is min-SNR's gamma
            residual=False,  # diffuse the face minus its up-sampled low-resolution image
            sigma_data=0.5,  # standard deviation of what is diffused
            sigma_data_no_lowres=0.5,  # the same without a low-resolution image
            lowres_aug_max=0.0,  # maximum noise added to the low-resolution image in training
        )
    )
    config.diffusion.upsampler = ml_collections.ConfigDict(
        dict(
            preconditioning="edm",
            sigma_distribution="lognormal",
            p_mean=0.0,
            p_std=1.2,
            weight="edm",
            max_weight=1e4,
            residual=True,
            sigma_data=0.15,
            sigma_data_no_lowres=0.15,
            lowres_aug_max=0.3,
        )
    )
    config.train = ml_collections.ConfigDict(
        dict(
            steps_per_dispatch=1,  # more: less overhead if steps take a few milliseconds
            warmup_steps=2_000,
            final_lr_fraction=0.03,  # the cosine decay ends at this fraction of the learning rate
            weight_decay=0.01,
            grad_clip_norm=1.0,  # maximum norm of the gradient
            ema_decay=0.9999,
            cond_drop=0.1,  # share of samples whose conditions are all dropped
            thumbnail_drop=0.15,  # share of samples whose thumbnail is dropped, in the base stage
            flip=True,  # mirror half of the faces
            log_every=100,  # steps, like the next three; 0: never
            validate_every=5_000,  # not at all in a shorter run
            preview_every=5_000,
            checkpoint_every=5_000,  # the end of a stage, and a stop, are always saved
            max_to_keep=3,  # newest checkpoints
            keep_best=1,  # and checkpoints of lowest validation loss
            skip_spikes=0.0,  # skip steps whose loss is this many times the running mean; 0: never
        )
    )
    config.train.base = dict(
        steps=400_000,
        batch_size=256,  # over all devices
        accumulate=1,  # microbatches that a device splits its share of the batch into, to save memory
        learning_rate=2e-4,
    )
    config.train.upsampler = dict(steps=400_000, batch_size=128, accumulate=1, learning_rate=2e-4)
    config.train.constituent_drop = dict.fromkeys(config.data.inputs, 0.1)  # share of samples in which each is dropped
    config.sample = ml_collections.ConfigDict(
        dict(
            sampler="dpmpp_2m",  # or "heun", "ddim", "ancestral"
            steps=24,
            sigma_schedule="karras",  # from sigma_max to sigma_min by rho; or "training": quantiles of training's
            sigma_min=0.005,  # in units of the data's std
            sigma_max=160.0,
            rho=7.0,
            churn=0.0,  # noise added before each step, by heun
            init_noise_scale=1.0,  # scales the initial noise; below 1 trades diversity for fidelity
            guidance_interval=(),  # of sigma, (low, high), with guidance; (): at all noise levels
            x0_threshold="static",  # of x0 estimates, or "dynamic", "none"
            dynamic_threshold_percentile=0.95,  # of absolute values, at which "dynamic" clips
            thumbnail_consistency=True,  # the result's 8x8 average equals the thumbnail
        )
    )
    return config
