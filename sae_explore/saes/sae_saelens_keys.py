"""The keys of SAELens's configurations, by what they mean for a reader; others are refused by name, because they might change the numbers.

From the dataclasses of its versions 0.1 to 6.54 and of `sae_training` before them.
"""

# What changes the numbers, or says where the SAE belongs.
_READ = """
architecture d_in d_sae apply_b_dec_to_input normalize_activations norm_scaling_factor reshape_activations metadata k
rescale_acts_by_decoder_norm
"""
_OLD_READ = """
architecture d_in d_sae apply_b_dec_to_input normalize_activations norm_scaling_factor activation_fn activation_fn_str activation_fn_kwargs
finetuning_scaling_factor hook_name hook_point hook_head_index hook_point_head_index model_name prepend_bos context_size
model_from_pretrained_kwargs reshape_activations
"""
# What is of the training run alone.
_TRAINING = """
dtype device decoder_init_norm l1_coefficient l1_warm_up_steps lp_norm use_sparse_activations aux_loss_coefficient topk_threshold_lr
matryoshka_widths use_matryoshka_aux_loss jumprelu_bandwidth jumprelu_init_threshold jumprelu_sparsity_loss_mode jumprelu_ste_to_input
jumprelu_tanh_scale l0_coefficient l0_warm_up_steps pre_act_loss_coefficient target_l0
"""
_OLD_TRAINING = """
act_store_device adam_beta1 adam_beta2 autocast autocast_lm b_dec_init_method cached_activations_path checkpoint_path compile_llm compile_sae
dataset_path dataset_trust_remote_code dead_feature_estimation_method dead_feature_threshold dead_feature_window decoder_heuristic_init
decoder_heuristic_init_norm decoder_orthogonal_init eval_batch_size_prompts eval_every_n_wandb_logs exclude_special_tokens expansion_factor
feature_reinit_scale feature_sampling_method feature_sampling_window finetuning_method finetuning_tokens from_pretrained_path hook_eval
hook_layer hook_point_eval hook_point_layer init_encoder_as_decoder_transpose is_dataset_tokenized llm_compilation_mode
log_activations_store_to_wandb log_optimizer_state_to_wandb log_to_wandb lr lr_decay_steps lr_end lr_scheduler_name lr_warm_up_steps
model_class_name model_kwargs mse_loss_normalization n_batches_in_buffer n_checkpoints n_eval_batches n_restart_cycles neuronpedia_id
noise_scale normalize_sae_decoder resample_batches resume run_name sae_compilation_mode sae_lens_training_version sae_lens_version
scale_sparsity_penalty_by_decoder_norm seed seqpos_slice store_batch_size store_batch_size_prompts streaming tokens_per_buffer
total_training_tokens train_batch_size train_batch_size_tokens training_tokens use_cached_activations use_ghost_grads verbose wandb_entity
wandb_id wandb_log_frequency wandb_project
"""

MODERN_KEYS = frozenset((_READ + _TRAINING).split())
OLD_KEYS = frozenset((_OLD_READ + _TRAINING + _OLD_TRAINING).split())
