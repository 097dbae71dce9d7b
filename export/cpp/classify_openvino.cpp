// Classify images with an artifact folder on OpenVINO, in C++.
//
//     classify_openvino ARTIFACT IMAGE... [--file openvino-int8] [--threads N] [--json]
//
// All facts come from the folder's manifest.json. Reads JPEG and binary PPM. Prints image, class and probability,
// tab-separated, or one JSON object a line with all logits.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <openvino/openvino.hpp>

#include "images.hpp"

using nlohmann::json;

namespace {

struct Arguments {
    std::string artifact, file;
    std::vector<std::string> images;
    int threads = 0;
    bool as_json = false;
};

Arguments parse(int count, char** words) {
    Arguments arguments;
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        auto value = [&] {
            if (++i == count) throw std::runtime_error(word + " needs a value");
            return std::string(words[i]);
        };
        if (word == "--file") arguments.file = value();
        else if (word == "--threads") arguments.threads = std::stoi(value());
        else if (word == "--json") arguments.as_json = true;
        else if (word.rfind("--", 0) == 0) throw std::runtime_error("unknown option " + word);
        else if (arguments.artifact.empty()) arguments.artifact = word;
        else arguments.images.push_back(word);
    }
    if (arguments.images.empty())
        throw std::runtime_error("usage: classify_openvino ARTIFACT IMAGE... [--file KEY] [--threads N] [--json]");
    return arguments;
}

json read_manifest(const std::string& folder) {
    std::ifstream stream(folder + "/manifest.json");
    if (!stream) throw std::runtime_error(folder + " has no manifest.json; give the folder that `edgemim export` wrote");
    return json::parse(stream);
}

std::string pick(const json& files, const std::string& asked) {
    for (const auto& key : asked.empty() ? std::vector<std::string>{"openvino-int8", "openvino-fp32", "onnx-fp32"}
                                         : std::vector<std::string>{asked})
        if (files.contains(key)) return files.at(key).at("path");
    throw std::runtime_error("the artifact has no model '" + asked + "'");
}

Preprocessing facts_of(const json& manifest) {
    const json& given = manifest.at("preprocessing");
    return {given.at("image_size"), given.at("crop_pct"), given.at("interpolation") == "bicubic", given.at("mean"),
            given.at("std")};
}

std::vector<float> softmax(std::vector<float> logits) {
    const float largest = *std::max_element(logits.begin(), logits.end());
    float sum = 0;
    for (float& value : logits) sum += value = std::exp(value - largest);
    for (float& value : logits) value /= sum;
    return logits;
}

void classify(const Arguments& arguments) {
    const json manifest = read_manifest(arguments.artifact);
    const Preprocessing facts = facts_of(manifest);
    const std::vector<std::string> labels = manifest.at("labels");
    ov::AnyMap settings{ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                        ov::hint::inference_precision(ov::element::f32)};
    if (arguments.threads > 0) settings.insert(ov::inference_num_threads(arguments.threads));
    ov::Core core;
    auto model = core.compile_model(arguments.artifact + "/" + pick(manifest.at("files"), arguments.file), "CPU", settings);
    auto request = model.create_infer_request();
    const size_t size = static_cast<size_t>(facts.image_size);
    for (const auto& path : arguments.images) {
        auto tensor = preprocess(load_image(path), facts);
        request.set_input_tensor(ov::Tensor(ov::element::f32, {1, 3, size, size}, tensor.data()));
        request.infer();
        const auto output = request.get_output_tensor();
        const std::vector<float> logits(output.data<float>(), output.data<float>() + output.get_size());
        const auto chances = softmax(logits);
        const size_t best = std::max_element(chances.begin(), chances.end()) - chances.begin();
        if (arguments.as_json)
            std::cout << json{{"image", path}, {"label", labels.at(best)}, {"probability", chances[best]}, {"logits", logits}}
                      << '\n';
        else
            std::cout << path << '\t' << labels.at(best) << '\t' << std::fixed << std::setprecision(4) << chances[best] << '\n';
    }
}

}  // namespace

int main(int count, char** words) {
    try {
        classify(parse(count, words));
        return 0;
    } catch (const std::exception& error) {
        std::cerr << "classify_openvino: " << error.what() << '\n';
        return 2;
    }
}
