//! Names of FLUX.2's modules and tensors: diffusers', which the transformer uses, and those of BFL's single files.

use amscript_nn::layout::Piece;
use amscript_nn::lora::Alias;

/// Modules that LoRA adapts unless told otherwise: the image side of attention and the single blocks.
pub fn lora_target(module: &str) -> bool {
    let image = [".attn.to_q", ".attn.to_k", ".attn.to_v", ".attn.to_out.0", ".attn.to_qkv_mlp_proj", ".attn.to_out"];
    image.iter().any(|end| module.ends_with(end))
}

/// Whether a linear module is part of a block; embedders, modulation and the final layer are not.
pub fn block_linear(module: &str) -> bool {
    module.starts_with("transformer_blocks.") || module.starts_with("single_transformer_blocks.")
}

/// What embeds the latents, in this layout and in BFL's: by it the network is found below any prefix.
pub const FIRST: [&str; 2] = ["x_embedder.weight", "img_in.weight"];

/// Linear modules in this layout and in BFL's; the last layer's scale and shift are in the other order there.
const TOP: [(&str, &str); 9] = [
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    ("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("double_stream_modulation_img.linear", "double_stream_modulation_img.lin"),
    ("double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin"),
    ("single_stream_modulation.linear", "single_stream_modulation.lin"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
];

/// Inside a double block: this layout, BFL's, and the place among the matrices stacked there.
const DOUBLE: [(&str, &str, usize); 12] = [
    ("attn.to_q", "img_attn.qkv", 0),
    ("attn.to_k", "img_attn.qkv", 1),
    ("attn.to_v", "img_attn.qkv", 2),
    ("attn.to_out.0", "img_attn.proj", 0),
    ("attn.add_q_proj", "txt_attn.qkv", 0),
    ("attn.add_k_proj", "txt_attn.qkv", 1),
    ("attn.add_v_proj", "txt_attn.qkv", 2),
    ("attn.to_add_out", "txt_attn.proj", 0),
    ("ff.linear_in", "img_mlp.0", 0),
    ("ff.linear_out", "img_mlp.2", 0),
    ("ff_context.linear_in", "txt_mlp.0", 0),
    ("ff_context.linear_out", "txt_mlp.2", 0),
];

const SINGLE: [(&str, &str, usize); 2] = [("attn.to_qkv_mlp_proj", "linear1", 0), ("attn.to_out", "linear2", 0)];

/// A linear module's name in BFL's layout.
pub fn alias(module: &str) -> Option<Alias> {
    if let Some((own, other)) = TOP.iter().find(|(own, _)| *own == module) {
        return Some(Alias { module: other.to_string(), part: 0, swapped: *own == "norm_out.linear" });
    }
    let (kind, inside) = module.split_once('.')?;
    let (index, inside) = inside.split_once('.')?;
    let (blocks, table): (_, &[_]) = match kind {
        "transformer_blocks" => ("double_blocks", &DOUBLE),
        "single_transformer_blocks" => ("single_blocks", &SINGLE),
        _ => return None,
    };
    let (_, other, part) = table.iter().find(|(own, ..)| *own == inside)?;
    Some(Alias { module: format!("{blocks}.{index}.{other}"), part: *part, swapped: false })
}

/// Query and key norms in this layout and in BFL's.
const NORMS: [(&str, &str); 6] = [
    ("attn.norm_q", "img_attn.norm.query_norm"),
    ("attn.norm_k", "img_attn.norm.key_norm"),
    ("attn.norm_added_q", "txt_attn.norm.query_norm"),
    ("attn.norm_added_k", "txt_attn.norm.key_norm"),
    ("attn.norm_q", "norm.query_norm"),
    ("attn.norm_k", "norm.key_norm"),
];

/// The tensors of a file in this layout or in BFL's, which may carry a prefix.
pub fn layout(stored: &str, shape: &[usize]) -> Vec<Piece> {
    let name = stored.strip_prefix("model.diffusion_model.").unwrap_or(stored);
    let Some((module, _)) = name.rsplit_once('.') else { return vec![Piece::whole(name, shape)] };
    if let Some((own, _)) = TOP.iter().find(|(_, other)| *other == module) {
        let piece = Piece::whole(format!("{own}.weight"), shape);
        return vec![if *own == "norm_out.linear" { piece.swapped() } else { piece }];
    }
    let inside = module.split_once('.').and_then(|(kind, rest)| Some((kind, rest.split_once('.')?)));
    let (blocks, table, i, inside): (_, &[_], _, _) = match inside {
        Some(("double_blocks", (i, inside))) => ("transformer_blocks", &DOUBLE, i, inside),
        Some(("single_blocks", (i, inside))) => ("single_transformer_blocks", &SINGLE, i, inside),
        _ => return vec![Piece::whole(name, shape)],
    };
    let full = |own: &str| format!("{blocks}.{i}.{own}.weight");
    if let Some((own, _)) = NORMS.iter().find(|(_, other)| *other == inside) {
        return vec![Piece::whole(full(own), shape)];
    }
    let parts: Vec<&str> = table.iter().filter(|(_, other, _)| *other == inside).map(|(own, ..)| *own).collect();
    match parts.len() {
        0 => vec![Piece::whole(name, shape)],
        n => parts.iter().enumerate().map(|(i, own)| Piece::part(full(own), shape, i, n)).collect(),
    }
}
