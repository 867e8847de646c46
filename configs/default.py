"""Every field with its meaning and default; the other files change what differs.

Those of the section model are SegDiff's; compare.py has the other models'.

python train.py --config=configs/default.py --workdir=runs/default

Any field can be given on the command line: `--config.train.batch_size=8`.
Machine: any. Time: see docs/results.md, whose ablation begins with this network. Score: likewise.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.seed = 0  # of initial parameters, data order, training noise and samples
    config.objective = "diffusion"  # to denoise masks; supervised: to make them of the image alone

    config.data = data = ConfigDict()
    data.dataset = "isic/2016"  # see docs/data.md; one's own: paired_folder
    data.extra_datasets = ()  # whose training images are added, but for ids of data.dataset
    data.image_size = 64  # pixels; images and masks are resized to a square of this side
    data.full_size = 0  # or to this one, of which windows of image_size are learned and segmented
    data.colour_constancy = "none"  # or shades_of_gray: the images under white light
    data.soft_masks = False  # a pixel's share of lesion; False: whether that is over one half
    data.dir = "data"  # the built data set lies here, and its resized images
    data.manual_dir = ""  # folder (or folder of folders) of the official archives; "": download
    data.images = ""  # of paired_folder: a folder of images, with all folders in it
    data.masks = ""  # of paired_folder: a folder of their masks, 0 and one other value or classes
    data.mask_endings = ("_Segmentation", "_mask", "")  # of a mask's name, after the image's
    data.classes = ()  # the masks' classes' names, background first; (): two, lesion or not
    data.mask_values = ()  # of those classes in mask files; (): 0, 1, 2, ...
    data.cache = True  # keep the resized uint8 images in memory and, for later runs, in data.dir
    data.num_threads = 2  # that decode ahead of the training step

    config.augment = augment = ConfigDict()  # see segdiff_jax/data/augment.py; 0 or False: off
    augment.flip = True  # left-right and up-down
    augment.right_angles = True  # turns by 90, 180 and 270 degrees
    augment.rotation = 0.0  # degrees, either way
    augment.scale = 0.0  # zoom by 1 +- this
    augment.shift = 0.0  # share of the side, each way
    augment.brightness = 0.0  # added, where the image spans [0, 1]
    augment.contrast = 0.0  # multiplies by 1 +- this
    augment.saturation = 0.0  # multiplies by 1 +- this
    augment.hue = 0.0  # share of the colour circle, either way
    augment.skin_tone = 0.0  # share of the images with other melanin and blood; also those below
    augment.hair = 0.0  # dark or pale
    augment.ruler = 0.0  # a row of ticks
    augment.gamma = 0.0  # a power of the colours
    augment.colour_cast = 0.0  # a gain for each channel
    augment.vignette = 0.0  # dark corners
    augment.frame = 0.0  # a black border
    augment.blur = 0.0  # Gaussian
    augment.jpeg = 0.0  # noise of JPEG compression
    augment.cutout = 0.0  # a rectangle of one colour

    config.model = model = ConfigDict()  # see segdiff_jax/models/
    model.name = "segdiff"  # see MODELS in segdiff_jax/models/__init__.py
    model.channels = 32  # base width, a multiple of norm_groups
    model.channel_mult = (1, 2, 2, 4)  # width of each level; each halves the size
    model.num_res_blocks = 1  # per level
    model.attention_resolutions = (4, 8)  # downsampling factors of the levels with attention
    model.num_heads = 4  # of the attention
    model.dropout = 0.0  # in the residual blocks
    model.scale_shift_norm = False  # the timestep scales and shifts instead of being added
    model.norm_groups = 32  # of each GroupNorm; 0: batch norm
    model.out_channels = 1  # of data.classes: their number; 2: learned variance (learned_range)
    model.rrdb_blocks = 1  # blocks of the image encoder G
    model.rrdb_width = 32  # channels of G
    model.rrdb_growth = 16  # channels that each convolution of G adds
    model.rrdb_scan = False  # one compiled block: compiles faster, slow to train on CPU
    model.rrdb_remat = False  # compute G again in the backward pass, for memory
    model.remat_resolutions = ()  # likewise the levels of these downsampling factors
    model.attention = "xla"  # or cudnn, with bfloat16; elsewhere than on GPUs, that is xla, too
    model.image_mean = ()  # of the colours, 0 to 255, that G sees as 0; (): it sees -1 to +1
    model.image_std = ()  # of the colours, 0 to 255, that G sees as 1
    model.dtype = "float32"  # or bfloat16, of the computation; parameters stay float32

    config.diffusion = diffusion = ConfigDict()  # see segdiff_jax/diffusion/process.py
    diffusion.schedule = "linear"  # or cosine
    diffusion.num_timesteps = 100  # T
    diffusion.prediction = "x0"  # or eps, v: what the network predicts
    diffusion.loss = "bce_dice"  # on the log odds of x0; or mse, rescaled_mse, kl, rescaled_kl
    diffusion.weight = "simple"  # or min_snr (gamma 5): of the loss at each timestep
    diffusion.timestep_power = 1.0  # trains at t = T u^this, u uniform; 1/3: more of the noisy end
    diffusion.timestep_sampler = "uniform"  # or loss_second_moment: by the losses seen at each t
    diffusion.recycling = False  # train on x_t made of the network's own mask (x0 only)
    diffusion.self_conditioning = False  # the network sees its estimate of the step before
    diffusion.input_scale = 0.3  # clean masks are -b or +b
    diffusion.normalise_input = True  # the network sees x_t at unit variance

    config.train = train = ConfigDict()
    train.num_steps = 10_000  # updates
    train.init_from = ""  # a workdir or checkpoint, from whose averaged parameters a new run starts
    train.max_minutes = 0.0  # end after this wall time of training; 0: off
    train.batch_size = 16  # of all devices together
    train.half_size_share = 0.0  # of the training, its start, is at half of data.image_size
    train.microbatches = 1  # average gradients over this many slices of the batch, for memory
    train.optimizer = "adamw"  # or muon, for the kernels: see segdiff_jax/training/state.py
    train.learning_rate = 1e-3  # at its peak
    train.schedule = "constant"  # or cosine, to 0 at the end, by num_steps or max_minutes
    train.warmup_steps = 100  # of linear growth to the peak
    train.frozen_gate_epochs = 10.0  # passes over the data before the gates of medt move
    train.weight_decay = 0.0  # decoupled
    train.clip_norm = 1.0  # of the gradient; 0: off
    train.max_skipped = 0  # steps in a row that a NaN or infinite gradient may cost; then it ends
    train.ema_decay = 0.999  # of the averaged parameters, which are evaluated and sampled
    train.ema_warmup = True  # decay min(ema_decay, (1 + n) / (10 + n)) at update n
    train.log_every = 20  # steps, for metrics.csv and the trackers
    train.trackers = ("tensorboard",)  # and, or, wandb, mlflow; (): none
    train.checkpoint_every = 500  # steps; and at the end

    config.validation = validation = ConfigDict()  # during training, of images as resized for it
    validation.every = 500  # steps; 0: off, then sample.py takes the last checkpoint
    validation.num_images = 64  # the first of the validation split
    validation.steps = 5  # of the sampler, whose other fields hold
    validation.votes = 1  # samples of each image

    config.sampler = sampler = ConfigDict()
    sampler.name = "ddim"  # or ddpm, dpm_solver_pp_2m
    sampler.steps = 10  # evaluations of the network per sample
    sampler.spacing = "trailing"  # ends at T - 1; leading: from 0, for many steps; uniform: both
    sampler.eta = 0.0  # ddim: 0 is deterministic, 1 as noisy as DDPM
    sampler.variance = "fixed_large"  # ddpm, and the losses kl: or fixed_small, learned_range
    sampler.clip = True  # keep the predicted clean mask in its range
    sampler.votes = 5  # samples of each image
    sampler.flips = False  # the votes see the image mirrored in turn: not, each way, both ways
    sampler.rotations = False  # and, or, by right angles; with flips there are eight views
    sampler.ensemble = "mean"  # of the samples (the original's); vote: a true majority; staple
    sampler.temperature = 1.0  # divides the log odds of the probability, of an ensemble's mean
    sampler.threshold = 0.5  # of the probability above which a pixel is lesion; not of data.classes
    sampler.native = False  # segment windows of images at their own size, not resized to a square
    sampler.overlap = 0.25  # of neighbouring windows, as a share of their side
    sampler.max_batch = 32  # most samples (images x votes) denoised together on a device
    sampler.max_memory = 0.0  # GiB of a device, for which there are fewer; 0: what is free

    return config.lock()  # A misspelt field in another file is an error.
