//! Rewards: images and prompts to one number per image, differentiable to the pixels.
