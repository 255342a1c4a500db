"""Settings of the smallest networks, so that a case takes milliseconds."""

SMALL = (
    "seed=1",
    "data=phantom",
    "data.image_size=32",
    "data.phantom.patients_per_site=[12,12,12]",
    "model.autoencoder.patch_size=2",
    "model.autoencoder.channels=[8,8]",
    "model.autoencoder.latent_channels=2",
    "model.autoencoder.norm_groups=4",
    "model.autoencoder.attention=false",
    "model.unet.channels=[8,8]",
    "model.unet.attention=[false,false]",
    "model.unet.layers_per_block=1",
    "model.unet.attention_head_width=8",
    "model.unet.norm_groups=4",
    "model.head.hidden=8",
    "evaluation.num_thresholds=11",
    "evaluation.num_bootstraps=2",
)
